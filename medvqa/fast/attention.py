"""Attention within each of several sequences that lie one behind the other.

A GPU in 16 bits uses PyTorch's flash attention for all sequences at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from medvqa.fast.transfer import to_device


@dataclass(frozen=True)
class Segments:
    """Which keys each query sees: its own sequence's, up to itself.

    Attributes:
        lengths: Tokens of each sequence that ask, on the host.
        starts: (S + 1,) where they begin, int32.
        used: (S,) keys of each sequence, int32; None where they are the asking tokens themselves.
        longest: The most keys of a sequence.
        room: Rows that the cache keeps for a sequence; 0 without a cache.
    """

    lengths: Sequence[int]
    starts: torch.Tensor
    used: torch.Tensor | None = None
    longest: int = 0
    room: int = 0

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "Segments":
        """Return sequences that see themselves."""
        starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        return cls(lengths, to_device(starts, device), longest=max(lengths))


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segments: Segments,
    scaling: float,
    *,
    causal: bool = True,
) -> torch.Tensor:
    """Return attention's result, (N, heads * D).

    Args:
        q: (N, heads, D), all sequences one behind the other.
        k: (N, groups, D) as `q`, or (S * room, groups, D) from a cache.
        v: As `k`.
        segments: Which belongs to which.
        scaling: Factor of the products.
        causal: A sequence's last query sees all its keys, the one before all but one, and so on;
            otherwise each query sees its whole sequence.
    """
    if not q.is_cuda or q.dtype not in (torch.bfloat16, torch.float16):
        return _attend_one_by_one(q, k, v, segments, scaling, causal=causal)
    starts = keys = segments.starts
    if segments.room:
        keys = torch.arange(len(starts), device=q.device, dtype=torch.int32) * segments.room
    # PyTorch's varlen_attn is this with fewer arguments, and which it has differs by version.
    output = torch.ops.aten._flash_attention_forward(
        q, k, v, starts, keys, max(segments.lengths), segments.longest, 0.0, causal, False,
        scale=scaling, seqused_k=segments.used,
    )[0]  # fmt: skip
    return output.flatten(1)  # type: ignore[no-any-return]


def _attend_one_by_one(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segments: Segments,
    scaling: float,
    *,
    causal: bool,
) -> torch.Tensor:
    used = segments.lengths if segments.used is None else segments.used.tolist()
    ends = [0, *accumulate(segments.lengths)]
    outputs = []
    for row, (length, num_keys) in enumerate(zip(segments.lengths, used, strict=True)):
        first = row * segments.room if segments.room else ends[row]
        queries = q[ends[row] : ends[row] + length]
        keys, values = (tensor[first : first + num_keys] for tensor in (k, v))
        is_square, seen = length == num_keys, None
        if causal and not is_square:
            seen = torch.ones(length, num_keys, dtype=torch.bool, device=q.device)
            seen = seen.tril(num_keys - length)
        output = torch.nn.functional.scaled_dot_product_attention(
            queries.transpose(0, 1)[None],
            keys.transpose(0, 1)[None],
            values.transpose(0, 1)[None],
            attn_mask=seen,
            is_causal=causal and is_square,
            scale=scaling,
            enable_gqa=True,
        )
        outputs.append(output[0].transpose(0, 1).flatten(1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
