"""Tensors that lie in one, so that an optimiser steps all of them by a few kernels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# bitsandbytes' (Dettmers et al., 8-bit Optimizers via Block-wise Quantization, ICLR 2022):
BLOCK = 256  # numbers whose moments share a scale
SMALL = 4096  # moments of smaller tensors are in 32 bits


class FlatTensors:
    """Tensors in float32 that lie in one, so that an optimiser steps them by a few kernels.

    One kernel steps them all, not 504 for an adapter of an 8B model. Each tensor starts a new block
    of its moments, and those that bitsandbytes would leave in 32 bits stay apart: the step is the
    same.

    Attributes:
        parts: One per shape, in order.
        wholes: What an optimiser is given.
    """

    def __init__(self, shapes: "Sequence[torch.Size]", device: "torch.device") -> None:
        import torch

        self._shapes = shapes
        # Rounded up to whole blocks.
        sizes = [-(-s.numel() // BLOCK) * BLOCK for s in shapes if s.numel() >= SMALL]
        whole = torch.zeros(sum(sizes), device=device)
        pieces = iter(whole.split_with_sizes(sizes))
        self.parts: list[torch.Tensor] = []
        self.wholes: list[torch.Tensor] = [whole] if sizes else []
        for shape in shapes:
            if shape.numel() >= SMALL:
                self.parts.append(next(pieces)[: shape.numel()].view(shape))
            else:
                self.parts.append(torch.zeros(shape, device=device))
                self.wholes.append(self.parts[-1])

    def on_cpu(self) -> "list[torch.Tensor]":
        """Return copies of the parts, none of which shares memory with another."""
        import torch

        copy = FlatTensors(self._shapes, torch.device("cpu"))
        for target, source in zip(copy.wholes, self.wholes, strict=True):
            target.copy_(source)
        return [part.clone() for part in copy.parts]
