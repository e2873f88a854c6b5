"""Batches that do not fit into the GPU's memory are computed in halves."""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from medvqa.fast.choice import ComputeEngine
from medvqa.models.sample import Sample

Result = TypeVar("Result")
log = logging.getLogger(__name__)


def within_memory(
    engine: ComputeEngine,
    samples: Sequence[Sample],
    compute: Callable[[Sequence[Sample]], Result],
    join: Callable[[Result, Result], Result],
) -> Result:
    """Return the result of the samples; where memory runs out, the joined results of the halves."""
    import torch

    try:
        return compute(samples)
    except torch.OutOfMemoryError:
        has_released = engine.release_memory()
        if len(samples) == 1 and not has_released:
            raise
    torch.cuda.empty_cache()
    if has_released:  # training's captured passes
        return within_memory(engine, samples, compute, join)
    log.warning("out of memory with %d questions at once: half of them", len(samples))
    middle = len(samples) // 2
    halves = (samples[:middle], samples[middle:])
    return join(*(within_memory(engine, half, compute, join) for half in halves))
