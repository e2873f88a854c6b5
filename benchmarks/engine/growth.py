"""Cost as work grows: images a question, pixels, the pool; model and rank are the call's own."""

import time
from collections.abc import Iterator
from dataclasses import replace

from benchmarks.engine.answering import Asked, ask, use_kernels
from benchmarks.engine.training import Case, forget_features, plan_of, rate, train
from benchmarks.engine.workload import BATCH_SIZE, Bench, Row, with_images_each
from medvqa.config.evaluation import Decoding
from medvqa.config.model import ModelConfig
from medvqa.config.training import Engine
from medvqa.models.source import set_pixel_budget

IMAGES = (1, 2, 4, 8)
SIDES = (0.5, 1.0, 1.5)  # of the settings' side
POOLS = (1_000, 10_000, 100_000)
POOL_STEPS = 40
ASKED = Asked(Engine.fused, Decoding.shared_prefix, 32, None)


def growth(bench: Bench, engine: Engine) -> Iterator[Row]:
    """Yield the fused engine's cost along each axis that was chosen."""
    if engine is not Engine.fused:
        return
    use_kernels(bench, engine)
    for axis in bench.settings.axes:
        yield from AXES[axis](bench)


def _images(bench: Bench) -> Iterator[Row]:
    for number in IMAGES:
        yield {"axis": "images", "value": number, **cost(bench, number, bench.settings.side)}


def _pixels(bench: Bench) -> Iterator[Row]:
    settings = bench.settings
    for side in (int(settings.side * factor) for factor in SIDES):
        config = ModelConfig(name=settings.model, max_pixels=side**2)
        set_pixel_budget(bench.loaded.processor, config)
        yield {"axis": "pixels", "value": side**2, **cost(bench, 1, side)}
    set_pixel_budget(bench.loaded.processor, settings.model_config)


def _model(bench: Bench) -> Iterator[Row]:
    """Yield the call's own model and rank; each other one is another call."""
    described = bench.loaded.describe()
    yield {
        "axis": "model",
        "value": described["num_parameters"],
        "num_trainable": described["num_trainable"],
        **cost(bench, 1, bench.settings.side),
    }


def cost(bench: Bench, num_images: int, side: int) -> Row:
    """Return training's rate and memory, and seconds a question, on square pictures."""
    settings, loaded = bench.settings, bench.loaded
    num_steps = settings.warm_up + settings.steps
    pool = with_images_each(bench.pool[: BATCH_SIZE * num_steps], num_images=num_images, side=side)
    forget_features(loaded)
    trained = train(loaded, bench.encoder(), pool, Case(Engine.fused, 8), num_steps)
    found = rate(trained, settings.warm_up)
    found |= {"micro_batch_size": trained.micro_batch_size, "peak_gpu_gb": bench.peak_gb()}
    forget_features(loaded)
    num_questions = min(ASKED.batch_size, settings.num_questions)
    seconds, texts, _ = ask(bench, bench.encoder(), pool[:num_questions], ASKED)
    return {
        **found,
        "seconds_per_question": round(seconds / len(texts), 5),
        "answering_peak_gpu_gb": bench.peak_gb(),
    }


def _pool(bench: Bench) -> Iterator[Row]:
    """Yield what planning and the first batch take on the host; loading is loading.py's."""
    for size in POOLS:
        copies = -(-size // len(bench.pool))
        pool = [
            replace(example, id=f"{copy}/{example.id}")
            for copy in range(copies)
            for example in bench.pool
        ][:size]
        started = time.perf_counter()
        plan = plan_of(pool, POOL_STEPS)
        planned = time.perf_counter()
        by_id = {example.id: example for example in pool}
        encoder = bench.encoder()
        samples = [encoder.encode(by_id[name]) for name in plan.order[:BATCH_SIZE]]
        encoder.training_batch(samples)
        yield {
            "axis": "pool",
            "value": size,
            "plan_s": round(planned - started, 4),
            "first_batch_s": round(time.perf_counter() - planned, 4),
        }


AXES = {"images": _images, "pixels": _pixels, "model": _model, "pool": _pool}
