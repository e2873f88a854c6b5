"""Pre-training of a small base on texts about pictures: all weights, on one device."""

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from medvqa.config.errors import UserError
from medvqa.data.example import Example
from medvqa.data.prefetch import ahead
from medvqa.models.encode import Encoder
from medvqa.models.sample import Sample
from medvqa.tracking.progress import track
from tools.speaking_training import learning_rate_factor

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

NUM_PROCESSES = min(12, os.cpu_count() or 1)
MAX_SKIPPED_FRACTION = 0.01


def pretrain(
    model: Any,
    encoder: Encoder,
    texts: Sequence[Example],
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    device: str,
    max_seconds: float = math.inf,
) -> float:
    """Train all weights on the texts; return the mean loss of the last 50 steps.

    AdamW, cosine schedule after 5 % warm-up, gradient norm at most 1. Where `max_seconds` comes
    before the last step, the learning rate falls in time for it, and the log says at which step.
    """
    import torch

    model.to(device).train()
    sample_of = _samples(model, encoder, texts, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
    generator = torch.Generator().manual_seed(seed)
    losses: list[float | None] = []
    draws = torch.randint(len(texts), (num_steps, batch_size), generator=generator).tolist()
    started = time.monotonic()
    for step in track(range(num_steps), description="pre-training"):
        spent = (time.monotonic() - started) / max_seconds
        if step and spent >= 1:
            log.warning("%.0f s are over after %d of %d steps", max_seconds, step, num_steps)
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * learning_rate_factor(max(step / num_steps, spent))
        batch = encoder.training_batch([sample_of(index) for index in draws[step]])
        inputs = {name: tensor.to(device) for name, tensor in batch.items()}
        losses.append(_step(model, optimizer, inputs))
        _check(losses, num_steps)
    if None in losses:
        log.warning("%d steps were skipped: gradients not finite", losses.count(None))
    return _mean_of_last(losses)


def _samples(
    model: Any, encoder: Encoder, texts: Sequence[Example], device: str
) -> Callable[[int], Sample]:
    if device != "cuda":
        return lambda index: encoder.encode(texts[index])
    # Image by image, most of a step would be waiting for launches.
    attend_to_all_pictures_at_once(model.model.visual)
    return encoded_at_once(encoder, texts, device)


def _check(losses: Sequence[float | None], num_steps: int) -> None:
    """Log the loss of each hundredth step; raise UserError where too many steps were skipped."""
    if losses.count(None) > MAX_SKIPPED_FRACTION * num_steps:
        raise UserError(
            f"{losses.count(None)} steps had gradients that are not finite; lower --learning-rate"
        )
    if len(losses) % 100 == 0:
        log.info("step %d: loss %.3f", len(losses), _mean_of_last(losses))


def attend_to_all_pictures_at_once(tower: Any) -> None:
    """Give transformers' vision tower PyTorch's flash attention, under a name that asks for it."""
    import torch
    from torch.nn.attention.varlen import varlen_attn
    from transformers import AttentionInterface

    def attend(
        module: Any, query: Any, key: Any, value: Any, attention_mask: None, **options: Any
    ) -> tuple[Any, None]:
        q, k, v = (tensor.squeeze(0).transpose(0, 1).contiguous() for tensor in (query, key, value))
        starts = options["cu_seq_lens_q"].to(torch.int32)
        longest = int(options["max_length_q"])
        output: Any = varlen_attn(q, k, v, starts, starts, longest, longest, scale=module.scaling)
        return output.unsqueeze(0), None

    AttentionInterface.register("varlen_flash", attend)
    tower.config._attn_implementation = "varlen_flash"


def _mean_of_last(losses: Sequence[float | None]) -> float:
    finite = [loss for loss in losses[-50:] if loss is not None]
    return sum(finite) / len(finite)


def _step(model: Any, optimizer: Any, inputs: "dict[str, torch.Tensor]") -> float | None:
    """Step and return the loss; None, and no step, where a gradient is not finite."""
    import torch

    kind = inputs["input_ids"].device.type
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=kind == "cuda"):
        loss = model(**inputs).loss
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    is_finite = bool(torch.isfinite(norm))
    if is_finite:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach()) if is_finite else None


def encoded_at_once(
    encoder: Encoder, texts: Sequence[Example], device: str
) -> Callable[[int], Sample]:
    """Encode everything before the first step; each picture lies on the device once.

    A step of a small model takes less than reading its batch of patches from another process.
    """
    import torch

    one_each = list({text.image_ids: text for text in texts}.values())
    log.info("encoding %d pictures and %d texts about them", len(one_each), len(texts))
    pictures: dict[tuple[str, ...], Sample] = {}
    for sample in ahead(encoder.encode, one_each, num_threads=NUM_PROCESSES):
        assert sample.pixel_values is not None
        pixels = sample.pixel_values.to(device, torch.bfloat16)
        pictures[sample.image_keys] = replace(sample, pixel_values=pixels)

    def words_of(text: Any) -> tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]:
        # No tensor: each that a process gives back holds a file open until it is dropped.
        sample = encoder.encode(text)
        return sample.image_keys, sample.prompt_ids, sample.answer_ids

    # The processes are copies of this one, so they find the pictures in the encoder's cache.
    words: Iterable[Any] = torch.utils.data.DataLoader(
        texts,  # type: ignore[arg-type]
        batch_size=None,
        collate_fn=words_of,
        num_workers=NUM_PROCESSES,
    )
    samples = [
        replace(pictures[keys], prompt_ids=prompt_ids, answer_ids=answer_ids)
        for keys, prompt_ids, answer_ids in words
    ]
    return samples.__getitem__
