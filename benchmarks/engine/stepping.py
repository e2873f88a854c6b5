"""The optimiser's step over the adapter: its tensors one by one, and laid into one."""

import statistics
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.engine.workload import Bench, Row
from medvqa.config.training import Engine, Optimizer, TrainingConfig
from medvqa.models.adapter import reset_adapter
from medvqa.models.load import LoadedModel
from medvqa.training.optimizer import AdapterOptimizer

if TYPE_CHECKING:
    import torch

LEARNING_RATE = 1e-3
MAX_GRAD_NORM = 1.0


def optimizer(bench: Bench, engine: Engine) -> Iterator[Row]:
    """Yield both ways' milliseconds and how many tensors end with the same bits.

    Gradients are noise in the model's type, the same for both; what the fused engine does with a
    micro-batch's, summing them in float32, is part of its time.
    """
    if engine is not Engine.fused:
        return
    settings = bench.settings
    num_steps = settings.warm_up + settings.steps
    for kind in Optimizer:
        apart = stepped(bench.loaded, kind, num_steps, together=False)
        whole = stepped(bench.loaded, kind, num_steps, together=True)
        alike = [weight.equal(whole.weights[name]) for name, weight in apart.weights.items()]
        yield {
            "optimizer": whole.optimizer,
            "num_steps": num_steps,
            "num_tensors": len(alike),
            "num_equal": sum(alike),
            "one_by_one_ms": milliseconds(apart, settings.warm_up),
            "together_ms": milliseconds(whole, settings.warm_up),
        }


class Stepped(NamedTuple):
    """Some steps: seconds of each, and the adapter after them."""

    optimizer: str
    seconds: "list[float]"
    weights: "dict[str, torch.Tensor]"


def milliseconds(stepped: Stepped, warm_up: int) -> float:
    """Return the median step's after the warm-up."""
    return round(1000 * statistics.median(stepped.seconds[warm_up:]), 2)


def stepped(loaded: LoadedModel, kind: Optimizer, num_steps: int, *, together: bool) -> Stepped:
    """Step from the adapter of seed 0, with the tensors laid into one or as they are."""
    import torch

    reset_adapter(loaded.model, seed=0)
    config = TrainingConfig(optimizer=kind)
    adapter = AdapterOptimizer(loaded, config, in_compute_type=together)
    generator = torch.Generator(loaded.device).manual_seed(0)
    seconds = []
    for _ in range(num_steps):
        for _, parameter in loaded.trainable:
            noise = torch.randn(parameter.shape, generator=generator, device=loaded.device)
            parameter.grad = noise.to(loaded.dtype).to(parameter.dtype)
        wait_for(loaded)
        started = time.perf_counter()
        adapter.collect()
        adapter.step(LEARNING_RATE, max_grad_norm=MAX_GRAD_NORM)
        wait_for(loaded)
        seconds.append(time.perf_counter() - started)
    return Stepped(adapter.name, seconds, adapter.weights())


def wait_for(loaded: LoadedModel) -> None:
    """Wait until the device has done what it was given."""
    if loaded.device.type == "cuda":
        import torch

        torch.cuda.synchronize()
