"""Which form of a training step fits into a GPU's memory, decided before the first step.

With fewer samples at once, a step needs more passes over all weights. Computing layers again costs
a third of the products. Running out of memory still changes the form later, in the same order.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from medvqa.config.errors import UserError
from medvqa.models.loaded import LoadedModel
from medvqa.models.patches import PictureCache

log = logging.getLogger(__name__)

MARGIN = 0.05  # of the memory, for a longer batch later
# Before layers are computed again: Qwen3-VL-8B in 4 bits is faster with 8 samples at once whose
# layers are computed again than with 2 at once four times (docs/engine.md).
NUM_HALVINGS = 1


class PassEngine(Protocol):
    """An engine whose passes can take less memory."""

    @property
    def recomputes(self) -> bool:
        """Whether the backward pass computes layers again."""

    def pass_bytes(self, num_tokens: int, *, recomputes: bool) -> int | None:
        """Return the bytes that a training pass of so many tokens takes, None if unknown."""

    def release_memory(self) -> bool:
        """Give back what only saves time; return whether there was anything."""

    def keep_one_length(self) -> bool:
        """Capture passes of one length only; return whether that is new."""

    def recompute_layers(self) -> bool:
        """Compute layers again in the backward pass; return whether that is new."""

    def stop_capturing(self) -> bool:
        """Capture no pass from now on; return whether that is new."""


@dataclass(frozen=True)
class Form:
    """How a step is computed: samples at once, and whether layers are computed again."""

    micro_batch_size: int
    recomputes: bool


def forms(share: int) -> Iterator[Form]:
    """Yield the forms of a step of `share` samples, the fastest first."""
    sizes = _halvings(share)
    yield from (Form(size, recomputes=False) for size in sizes[: NUM_HALVINGS + 1])
    yield from (Form(size, recomputes=True) for size in sizes)


def _halvings(share: int) -> list[int]:
    sizes = [share]
    while sizes[-1] > 1:
        sizes.append((sizes[-1] + 1) // 2)
    return sizes


def planned_micro_batch(engine: PassEngine, num_tokens: Sequence[int], room: int) -> int:
    """Return how many samples are computed at once; layers are computed again if need be.

    Args:
        engine: Whose passes are planned.
        num_tokens: Of each sample of this GPU in the first step.
        room: See `free_bytes`.
    """
    share, longest = len(num_tokens), sorted(num_tokens, reverse=True)
    for form in forms(share):
        tokens = sum(longest[: form.micro_batch_size])
        needed = engine.pass_bytes(tokens, recomputes=form.recomputes)
        if needed is None:
            return share
        is_scarce = 2 * needed > room  # a captured pass stays; one of a new length runs beside it
        if needed <= room:
            break
    if form.recomputes:
        engine.recompute_layers()
    if is_scarce:
        engine.release_memory()
        engine.keep_one_length()
    if form != Form(share, recomputes=False):
        log.info(
            "%.1f GB of GPU memory are free: micro-batches of %d%s",
            *(room / 1e9, form.micro_batch_size),
            ", layers are computed again" if form.recomputes else "",
        )
    return form.micro_batch_size


def smaller_micro_batch(engine: PassEngine, features: PictureCache, size: int, share: int) -> int:
    """Return how many samples are computed at once after memory ran out: the next of `forms`.

    Features of pictures go first: they save time only where a picture comes again. Small captured
    passes are faster than large ones that the host launches kernel by kernel. Where layers are
    computed again, the large ones are faster (docs/engine.md).

    Args:
        engine: Whose layers are computed again, or whose captures end, if need be.
        features: Of pictures, which are no longer kept.
        size: Samples that were computed at once.
        share: Samples of this GPU in a step, or what the config allows at once.

    Raises:
        UserError: If not even one sample fits.
    """
    if features.num_bytes:
        features.limit(0)
        log.warning("out of memory: features of pictures are not kept from now on")
        return size
    if engine.keep_one_length():
        log.warning("out of memory: passes of one length are captured from now on")
        return size
    is_halved = size <= _halvings(share)[: NUM_HALVINGS + 1][-1]
    if is_halved and engine.recompute_layers():
        form = f"layers are computed again in the backward pass, in micro-batches of {share},"
        size = share
    elif engine.recomputes and engine.stop_capturing():
        form = "without CUDA graphs"
    elif size > 1:
        size = (size + 1) // 2
        form = f"micro-batches of {size}"
    elif engine.stop_capturing():
        form = "without CUDA graphs"
    else:
        raise UserError(
            "one sample does not fit into the GPU's memory; use model.load_in_4bit=true or a "
            "smaller model.max_pixels"
        )
    log.warning("out of memory: %s from now on", form)
    return size


def free_bytes(loaded: LoadedModel) -> int:
    """Return the GPU memory that training passes may take.

    Three things are subtracted: what the features of pictures may still take, a margin, and free
    pieces between tensors. Quantising leaves many such pieces, and a pass needs larger ones.
    """
    import torch

    free, total = torch.cuda.mem_get_info(loaded.device)
    own = torch.cuda.memory_allocated(loaded.device)
    limit = int(total * torch.cuda.get_per_process_memory_fraction(loaded.device))
    room = min(limit - own, free + torch.cuda.memory_reserved(loaded.device) - own)
    pieces = int(torch.cuda.memory_stats(loaded.device)["inactive_split_bytes.all.current"])
    return room - pieces - loaded.features.num_free_bytes - int(MARGIN * limit)
