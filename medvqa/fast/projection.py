"""Frozen linear layers with LoRA that read the same input: product and gradients written out.

PEFT does the same layer by layer, one operation at a time. Here the products of q, k and v (or
gate and up) land side by side in one tensor. Their A matrices are multiplied at once, and each sum
happens inside a product. Shapes: N tokens, I inputs, O outputs of all layers, R ranks of all.
"""

from collections.abc import Sequence
from copy import copy
from typing import Any, NamedTuple

import torch

from medvqa.fast.fp8 import Fp8Weight

PLAIN_SCALES = "_medvqa_plain_scales"
Parameters = Sequence[torch.Tensor]  # A (r, I) and B (O, r) of each adapted layer, in order


class LowRank(NamedTuple):
    """What a group's backward pass needs of its forward pass, beside the input.

    Attributes:
        low: (N, R) products with the A matrices; None without adapters.
        stacked: (R, I) the A matrices.
        masks: One (N, I) per adapted layer where dropout is on: 1 / (1 - p) or 0.
    """

    low: torch.Tensor | None
    stacked: torch.Tensor | None
    masks: tuple[torch.Tensor, ...] = ()


class Group:
    """Layers with one input, each `torch.nn.Linear` or 4-bit, with PEFT's adapter or without.

    With `in_8_bits` the frozen weights are replaced by copies in FP8, for good.
    """

    def __init__(self, modules: Sequence[Any], *, in_8_bits: bool = False) -> None:
        self._adapters = [module for module in modules if hasattr(module, "lora_A")]
        self._adapted = [n for n, module in enumerate(modules) if hasattr(module, "lora_A")]
        self._bases = [
            module.base_layer if module in self._adapters else module for module in modules
        ]
        self._widths = [int(base.out_features) for base in self._bases]
        names = [adapter.active_adapters[0] for adapter in self._adapters]
        named = list(zip(self._adapters, names, strict=True))
        scales = {float(adapter.scaling[name]) for adapter, name in named}
        self._scale = max(scales, default=1.0)
        assert len(scales) < 2, "one LoRA configuration for all layers"
        self._dropouts = [getattr(a.lora_dropout[name], "p", 0.0) for a, name in named]
        self._ranks = [int(adapter.r[name]) for adapter, name in named]
        self._width = sum(self._widths)
        self._fp8 = Fp8Weight([base.weight for base in self._bases]) if in_8_bits else None
        for base in self._bases if in_8_bits else ():
            # One number in the weight's shape: who still computes with it sees NaN.
            base.weight.data = base.weight.data.new_full((1, 1), torch.nan).expand_as(base.weight)
        self._parameters = [
            matrix[name].weight for a, name in named for matrix in (a.lora_A, a.lora_B)
        ]

    @property
    def has_dropout(self) -> bool:
        """Whether an adapter drops inputs in training."""
        return any(self._dropouts)

    @property
    def num_parameters(self) -> int:
        """A and B of each adapted layer, whether enabled or not."""
        return len(self._parameters)

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return A and B of each adapted layer; none while the adapter is disabled."""
        if any(adapter.disable_adapters for adapter in self._adapters):
            return []
        return self._parameters

    def forward(
        self, x: torch.Tensor, parameters: Parameters, *, training: bool
    ) -> tuple[torch.Tensor, LowRank]:
        """Return the products (N, O) side by side, and what `backward` needs."""
        out = self._products(x)
        pieces = self._pieces(out)
        if not parameters:
            return out, LowRank(None, None)
        matrices = [parameter.to(x.dtype) for parameter in parameters]
        firsts, seconds = matrices[::2], matrices[1::2]
        stacked = firsts[0] if len(firsts) == 1 else torch.cat(firsts)
        masks: tuple[torch.Tensor, ...] = ()
        if training and any(self._dropouts):
            masks = tuple(torch.empty_like(x).bernoulli_(1 - p) / (1 - p) for p in self._dropouts)
            low = torch.cat([x * m @ a.t() for m, a in zip(masks, firsts, strict=True)], dim=1)
        else:
            low = x @ stacked.t()
        for number, part, second in zip(self._adapted, self._parts(low), seconds, strict=True):
            pieces[number].addmm_(part, second.t(), alpha=self._scale)
        return out, LowRank(low, stacked, masks)

    def _products(self, x: torch.Tensor) -> torch.Tensor:
        if self._fp8 is not None:
            out = self._fp8.product(x)
            for base, piece in zip(self._bases, self._pieces(out), strict=True):
                if base.bias is not None:
                    piece += base.bias
            return out
        out = x.new_empty((len(x), self._width))
        for base, piece in zip(self._bases, self._pieces(out), strict=True):
            if base.bias is None:
                torch.mm(x, _weight(base).t(), out=piece)
            else:
                torch.addmm(base.bias, x, _weight(base).t(), out=piece)
        return out

    def pull_back(
        self,
        grad: torch.Tensor,
        low_rank: LowRank,
        parameters: Parameters,
        *,
        needs_input: bool = True,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return the gradients of the input, (N, I), and of `low_rank.low`.

        Args:
            grad: (N, O) of the result.
            low_rank: What `forward` returned.
            parameters: What it was given.
            needs_input: None is returned for the input otherwise.
        """
        pieces = self._pieces(grad)
        x_grad = self._through_bases(grad) if needs_input else None
        if low_rank.low is None or low_rank.stacked is None:
            return x_grad, None
        low_grad = torch.empty_like(low_rank.low)
        parts = self._parts(low_grad)
        for number, part, second in zip(self._adapted, parts, parameters[1::2], strict=True):
            # With beta=0 this is a scaled product: what `part` holds before does not count.
            torch.addmm(
                part, pieces[number], second.to(grad.dtype), beta=0, alpha=self._scale, out=part
            )
        if x_grad is not None and not low_rank.masks:
            x_grad.addmm_(low_grad, low_rank.stacked)
        elif x_grad is not None:
            firsts = low_rank.stacked.split_with_sizes(self._ranks)
            for part, first, mask in zip(parts, firsts, low_rank.masks, strict=True):
                x_grad += part @ first * mask
        return x_grad, low_grad

    def gradients(
        self,
        x: torch.Tensor,
        grad: torch.Tensor,
        low_grad: torch.Tensor | None,
        low_rank: LowRank,
        parameters: Parameters,
    ) -> list[torch.Tensor]:
        """Return the parameters' gradients, each in its parameter's type.

        Args:
            x: The input of `forward`.
            grad: (N, O) of its result.
            low_grad: From `pull_back`.
            low_rank: What `forward` returned.
            parameters: What it was given.
        """
        if low_grad is None or low_rank.low is None:
            return []
        pieces = self._pieces(grad)
        seconds = []
        for number, low in zip(self._adapted, self._parts(low_rank.low), strict=True):
            second = low.new_empty((self._widths[number], low.shape[1]))
            torch.addmm(second, pieces[number].t(), low, beta=0, alpha=self._scale, out=second)
            seconds.append(second)
        if low_rank.masks:
            parts = zip(self._parts(low_grad), low_rank.masks, strict=True)
            firsts = [part.t() @ (x * mask) for part, mask in parts]
        else:
            firsts = list((low_grad.t() @ x).split_with_sizes(self._ranks))
        both = [tensor for pair in zip(firsts, seconds, strict=True) for tensor in pair]
        return [g.to(p.dtype) for g, p in zip(both, parameters, strict=True)]

    def _pieces(self, side_by_side: torch.Tensor) -> Sequence[torch.Tensor]:
        if len(self._widths) == 1:
            return (side_by_side,)
        return side_by_side.split_with_sizes(self._widths, dim=1)

    def _parts(self, low: torch.Tensor) -> Sequence[torch.Tensor]:
        return (low,) if len(self._ranks) == 1 else low.split_with_sizes(self._ranks, dim=1)

    def _through_bases(self, grad: torch.Tensor) -> torch.Tensor:
        if self._fp8 is not None:
            return self._fp8.pull_back(grad)
        pieces = self._pieces(grad)
        total = pieces[0] @ _weight(self._bases[0])
        for piece, base in zip(pieces[1:], self._bases[1:], strict=True):
            total.addmm_(piece, _weight(base))
        return total


def _weight(base: Any) -> torch.Tensor:
    """Return (O, I), unpacked where it is stored in 4 bits."""
    stored: torch.Tensor = base.weight
    if getattr(stored, "quant_state", None) is None:
        return stored
    from bitsandbytes.functional import dequantize_4bit

    unpacked: torch.Tensor = dequantize_4bit(stored.data, _plain_scales(base))
    return unpacked


def _plain_scales(base: Any) -> Any:
    """Return the layer's quantisation state with its blocks' scales in float32.

    The scales are quantised themselves. Unpacking them with each use of the weight would take as
    many launches as unpacking the weight. Unpacked once, they have the same values. 8 billion
    parameters have half a gigabyte of scales. Source: Dettmers et al., QLoRA, NeurIPS 2023.
    """
    if PLAIN_SCALES not in vars(base):
        state = copy(base.weight.quant_state)
        if state.nested:
            from bitsandbytes.functional import dequantize_blockwise

            scales = dequantize_blockwise(state.absmax, state.state2) + state.offset
            state.absmax, state.nested = scales.float(), False
        setattr(base, PLAIN_SCALES, state)
    return vars(base)[PLAIN_SCALES]
