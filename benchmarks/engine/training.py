"""Training: rates and losses of the engines."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.engine.workload import BATCH_SIZE, Bench, with_pictures
from benchmarks.runs import Row, rate
from medvqa.config.curriculum import CurriculumConfig, Filter, StageConfig
from medvqa.config.errors import UserError
from medvqa.config.training import Engine, Optimizer, TrainingConfig
from medvqa.curriculum import plan_curriculum
from medvqa.data.example import Example
from medvqa.models.adapter import reset_adapter
from medvqa.models.encode import Encoder
from medvqa.models.loaded import FEATURE_SHARE, LoadedModel
from medvqa.training.loop import Trainer


@dataclass(frozen=True)
class Case:
    """An engine with its micro-batch, written `fused:8`."""

    engine: Engine
    micro_batch_size: int


def cases_of(texts: Sequence[str], engine: Engine) -> list[Case]:
    """Return the cases of this engine."""
    cases = (text.split(":") for text in texts)
    return [Case(engine, int(size)) for name, size in cases if Engine[name] is engine]


def train(
    loaded: LoadedModel,
    encoder: Encoder,
    examples: Sequence[Example],
    case: Case,
    num_steps: int,
    *,
    fits: bool = False,
) -> tuple[list[Row], int]:
    """Train from the adapter of seed 0, in a form that `fits`; return steps and micro-batch."""
    reset_adapter(loaded.model, seed=0)
    loaded.reset_peak()
    stage = StageConfig(name="all", filter=Filter.all, share=1.0)
    curriculum = CurriculumConfig(name="all", stages=[stage])
    plan = plan_curriculum(curriculum, examples, max_steps=num_steps, batch_size=BATCH_SIZE, seed=0)
    by_id = {example.id: example for example in examples}
    rows: list[Any] = []
    with trainer_of(loaded, encoder, case, num_steps, fits=fits) as trainer:
        result = trainer.train(plan, by_id, on_step=rows.append, on_stage_end=lambda *_: None)
    return rows, result.micro_batch_size


@contextmanager
def trainer_of(
    loaded: LoadedModel, encoder: Encoder, case: Case, num_steps: int, *, fits: bool = False
) -> Iterator[Trainer]:
    """Yield a trainer of the published batch of 8 with torch's AdamW; its files vanish."""
    config = TrainingConfig(
        max_steps=num_steps,
        micro_batch_size=case.micro_batch_size,
        accumulation_steps=BATCH_SIZE // case.micro_batch_size,
        optimizer=Optimizer.adamw,
        warmup_steps=0,
        checkpoint_every=10**6,
        engine=case.engine,
        fit_micro_batch=fits,
    )
    with tempfile.TemporaryDirectory() as directory:
        yield Trainer(loaded, encoder, config, directory=Path(directory), seed=0)


def training(bench: Bench, engine: Engine) -> Iterator[Row]:
    """Yield the steady rate of each case, with pictures that are new and that come again.

    Where they come again, all samples have been seen before, as in a later epoch. An engine
    that keeps nothing is measured once. Losses are compared with those of the first case.
    """
    options, features = bench.options, bench.loaded.features
    num_steps = options.warm_up + options.steps
    for kind in options.pictures:
        pool = bench.pool[: BATCH_SIZE * num_steps] if kind == "square" else bench.pool
        pool = with_pictures(pool, kind=kind, side=options.side)
        for case in cases_of(options.training, engine):
            encoder = bench.encoder()
            features.clear()
            for is_repeated in (False,) if engine is Engine.plain else (False, True):
                before = features.num_added
                steps, micro_batch_size = train(bench.loaded, encoder, pool, case, num_steps)
                losses = [row["loss"] for row in steps]
                reference = bench.losses.setdefault(kind, losses)
                yield {
                    "engine": case.engine.value,
                    "micro_batch_size": micro_batch_size,
                    "pictures": kind,
                    "pictures_seen_before": is_repeated,
                    "num_pictures_computed": features.num_added - before,
                    **rate(steps, options.warm_up, BATCH_SIZE),
                    "peak_gpu_gb": bench.peak_gb(),
                    "max_difference": max(
                        abs(a - b) for a, b in zip(losses, reference, strict=True)
                    ),
                    "losses": losses,
                }


def cards(bench: Bench, engine: Engine) -> Iterator[Row]:
    """Yield the rate within the memory of smaller cards, as the loop chooses its form there."""
    import torch

    options, loaded = bench.options, bench.loaded
    if engine is not Engine.fused or loaded.device.type != "cuda":
        return
    _, total = torch.cuda.mem_get_info()
    num_steps = options.warm_up + options.steps
    pool = with_pictures(bench.pool[: BATCH_SIZE * num_steps], kind="square", side=options.side)
    for gigabytes in options.cards:
        loaded.features.clear()
        loaded.engines.clear()  # their graphs and what they have given up
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(gigabytes * 1e9 / total)
        loaded.features.limit(int(gigabytes * 1e9) // FEATURE_SHARE)
        try:
            case = Case(engine, BATCH_SIZE)
            encoder = bench.encoder()
            steps, micro_batch_size = train(loaded, encoder, pool, case, num_steps, fits=True)
        except UserError as error:
            yield {"card_gb": gigabytes, "error": str(error)}
            continue
        decoder = loaded.engines["fused"].decoder
        yield {
            "card_gb": gigabytes,
            "micro_batch_size": micro_batch_size,
            "layers_recomputed": decoder.recomputes,
            "num_graphs": len(decoder.graphs),
            **rate(steps, options.warm_up, BATCH_SIZE),
            "peak_gpu_gb": bench.peak_gb(),
        }
