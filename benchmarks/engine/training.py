"""Training: rates, loss curves and gradients of the engines."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.engine.workload import BATCH_SIZE, Bench, Row, with_pictures
from medvqa.config.curriculum import CurriculumConfig, Filter, StageConfig
from medvqa.config.errors import UserError
from medvqa.config.training import Engine, Optimizer, TrainingConfig
from medvqa.curriculum import plan_curriculum
from medvqa.data.example import Example
from medvqa.data.plan import Plan
from medvqa.models.adapter import reset_adapter
from medvqa.models.encode import Encoder
from medvqa.models.loaded import FEATURE_SHARE, LoadedModel
from medvqa.training.loop import Trainer

if TYPE_CHECKING:
    import torch

B_NOISE = 0.02  # with B zero, as training begins, A has no gradient to compare


@dataclass(frozen=True)
class Case:
    """An engine with its micro-batch, written `fused:8`."""

    engine: Engine
    micro_batch_size: int

    @classmethod
    def parse(cls, text: str) -> "Case":
        """Return the case that the text names."""
        name, _, size = text.partition(":")
        return cls(Engine[name], int(size))

    @property
    def label(self) -> str:
        """Engine, micro-batch and accumulation, such as `plain 2x4`."""
        return f"{self.engine.value} {self.micro_batch_size}x{BATCH_SIZE // self.micro_batch_size}"


@dataclass(frozen=True)
class Trained:
    """One call of the trainer; `seconds` of each step are the device's, gaps included."""

    losses: list[float]
    seconds: list[float]
    num_tokens: int
    micro_batch_size: int


def cases_of(texts: Sequence[str], engine: Engine) -> list[Case]:
    """Return the cases of this engine."""
    return [case for case in map(Case.parse, texts) if case.engine is engine]


def config_of(case: Case, num_steps: int) -> TrainingConfig:
    """Return the published batch of 8 with torch's AdamW."""
    return TrainingConfig(
        max_steps=num_steps,
        micro_batch_size=case.micro_batch_size,
        accumulation_steps=BATCH_SIZE // case.micro_batch_size,
        optimizer=Optimizer.adamw,
        warmup_steps=0,
        checkpoint_every=10**6,
        engine=case.engine,
        fit_micro_batch=False,
    )


def plan_of(examples: Sequence[Example], num_steps: int) -> Plan:
    """Return one shuffled stage over the examples."""
    stage = StageConfig(name="all", filter=Filter.all, share=1.0)
    curriculum = CurriculumConfig(name="all", stages=[stage])
    return plan_curriculum(curriculum, examples, max_steps=num_steps, batch_size=BATCH_SIZE, seed=0)


def train(
    loaded: LoadedModel, encoder: Encoder, examples: Sequence[Example], case: Case, num_steps: int
) -> Trained:
    """Train from the adapter of seed 0 and return what was seen."""
    reset_adapter(loaded.model, seed=0)
    loaded.reset_peak()
    rows: list[Any] = []
    with tempfile.TemporaryDirectory() as directory:
        config = config_of(case, num_steps)
        trainer = Trainer(loaded, encoder, config, directory=Path(directory), seed=0)
        plan = plan_of(examples, num_steps)
        by_id = {example.id: example for example in examples}
        result = trainer.train(plan, by_id, on_step=rows.append, on_stage_end=nothing)
    return Trained(
        losses=[row["loss"] for row in rows],
        seconds=[row["seconds"] for row in rows],
        num_tokens=sum(row["num_tokens"] for row in rows),
        micro_batch_size=result.micro_batch_size,
    )


def nothing(*_: object) -> None:
    """Stand for what the benchmark does not do at a stage's end."""


def forget_features(loaded: LoadedModel) -> None:
    """Make the vision tower see all pictures anew."""
    loaded.features.clear()


def training(bench: Bench, engine: Engine) -> Iterator[Row]:
    """Yield the steady rate of each case, with pictures that are new and that come again.

    Where they come again, all samples have been seen before, as in a later epoch. An engine
    that keeps nothing is measured once.
    """
    settings = bench.settings
    num_steps = settings.warm_up + settings.steps
    for kind in settings.pictures:
        pool = with_pictures(
            bench.pool[: BATCH_SIZE * num_steps] if kind == "square" else bench.pool,
            kind=kind,
            side=settings.side,
        )
        for case in cases_of(settings.training, engine):
            encoder = bench.encoder()
            forget_features(bench.loaded)
            for is_repeated in (False,) if engine is Engine.plain else (False, True):
                before = bench.loaded.features.num_added
                trained = train(bench.loaded, encoder, pool, case, num_steps)
                after = bench.loaded.features.num_added
                yield {
                    "engine": case.engine.value,
                    "micro_batch_size": trained.micro_batch_size,
                    "pictures": kind,
                    "pictures_seen_before": is_repeated,
                    "num_pictures_computed": after - before,
                    **rate(trained, settings.warm_up),
                    "peak_gpu_gb": bench.peak_gb(),
                }


def cards(bench: Bench, engine: Engine) -> Iterator[Row]:
    """Yield the rate within the memory of smaller cards, as the loop chooses its form there."""
    import torch

    settings, loaded = bench.settings, bench.loaded
    if engine is not Engine.fused or loaded.device.type != "cuda":
        return
    _, total = torch.cuda.mem_get_info()
    num_steps = settings.warm_up + settings.steps
    pool = with_pictures(bench.pool[: BATCH_SIZE * num_steps], kind="square", side=settings.side)
    for gigabytes in settings.cards:
        forget_features(loaded)
        loaded.engines.clear()  # their graphs and what they have given up
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(gigabytes * 1e9 / total)
        loaded.features.limit(int(gigabytes * 1e9) // FEATURE_SHARE)
        try:
            case = Case(engine, BATCH_SIZE)
            trained = train(loaded, bench.encoder(), pool, case, num_steps)
        except UserError as error:
            yield {"card_gb": gigabytes, "error": str(error)}
            continue
        yield {
            "card_gb": gigabytes,
            "micro_batch_size": trained.micro_batch_size,
            "layers_recomputed": loaded.engines["fused"].decoder.recomputes,
            "num_graphs": len(loaded.engines["fused"].decoder.graphs),
            **rate(trained, settings.warm_up),
            "peak_gpu_gb": bench.peak_gb(),
        }


def rate(trained: Trained, warm_up: int) -> Row:
    """Return samples per second after the warm-up, with the losses at both ends."""
    num_steps = len(trained.losses) - warm_up
    seconds = sum(trained.seconds[warm_up:])
    return {
        "samples_per_second": round(BATCH_SIZE * num_steps / seconds, 2),
        "ms_per_step": round(1000 * seconds / num_steps, 1),
        "num_steps": num_steps,
        "tokens_per_sample": round(trained.num_tokens / len(trained.losses) / BATCH_SIZE, 1),
        "first_loss": trained.losses[0],
        "last_loss": trained.losses[-1],
    }


def curve(bench: Bench, engine: Engine) -> Iterator[Row]:
    """Yield the loss of each step, and how far it is from the first curve measured."""
    for case in cases_of(bench.settings.curves, engine):
        trained = train(bench.loaded, bench.encoder(), bench.pool, case, bench.settings.curve_steps)
        bench.curves[case.label] = trained.losses
        label, reference = next(iter(bench.curves.items()))
        differences = [abs(a - b) for a, b in zip(trained.losses, reference, strict=True)]
        yield {
            "case": case.label,
            "reference": label,
            "num_steps": len(trained.losses),
            "max_difference": max(differences),
            "mean_difference": sum(differences) / len(differences),
            "first_loss": trained.losses[0],
            "last_loss": trained.losses[-1],
            "losses": trained.losses,
        }


def gradients(bench: Bench, engine: Engine) -> Iterator[Row]:
    """Yield how far each adapter tensor's gradient is from the first case's, on one batch."""
    for case in cases_of(bench.settings.curves, engine):
        bench.gradients[case.label] = gradient_of(bench, case)
        label, reference = next(iter(bench.gradients.items()))
        yield {
            "case": case.label,
            "reference": label,
            **compare(reference, bench.gradients[case.label]),
        }


def gradient_of(bench: Bench, case: Case) -> "dict[str, torch.Tensor]":
    """Return what the optimiser would have stepped by, in float32 on the CPU, by name."""
    import torch

    loaded = bench.loaded
    reset_adapter(loaded.model, seed=0)
    perturb(loaded, seed=0)
    gradient_by_name: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as directory:
        config = config_of(case, 1)
        trainer = Trainer(loaded, bench.encoder(), config, directory=Path(directory), seed=0)
        optimizer = trainer.optimizer
        names = list(optimizer.weights())

        def keep(*_: object, **__: object) -> torch.Tensor:
            # Copies: on a CPU both moves would leave the tensor that the next step adds to.
            tensors = [g.detach().float().cpu().clone() for g in optimizer.gradients()]
            optimizer.forget_gradients()
            gradient_by_name.update(zip(names, tensors, strict=True))
            norm: torch.Tensor = torch.stack([tensor.norm() for tensor in tensors]).norm()
            return norm.to(loaded.device)

        optimizer.step = keep  # type: ignore[method-assign]
        plan = plan_of(bench.pool, 1)
        by_id = {example.id: example for example in bench.pool}
        trainer.train(plan, by_id, on_step=nothing, on_stage_end=nothing)
    return gradient_by_name


def perturb(loaded: LoadedModel, *, seed: int) -> None:
    """Fill every B with seeded noise."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in loaded.trainable:
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * B_NOISE)


def compare(reference: "dict[str, torch.Tensor]", other: "dict[str, torch.Tensor]") -> Row:
    """Return relative errors ||g - g'|| / ||g|| over tensors, and the angle of the whole."""
    import torch

    errors = {
        name: float((g.double() - other[name].double()).norm() / g.double().norm())
        for name, g in reference.items()
    }
    ordered = sorted(errors.values())
    one = torch.cat([g.flatten() for g in reference.values()]).double()
    two = torch.cat([other[name].flatten() for name in reference]).double()
    return {
        "num_tensors": len(errors),
        "max_relative_error": ordered[-1],
        "median_relative_error": ordered[len(ordered) // 2],
        "worst_tensor": max(errors, key=errors.__getitem__),
        "cosine": float(one @ two / (one.norm() * two.norm())),
        "norm": float(two.norm()),
    }
