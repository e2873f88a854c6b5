"""Qwen-VL's vision towers over all pictures of a batch at once, in few kernels.

The modules are transformers' own. What differs per family is asked of the module: learned
positions and middle layers (Qwen3-VL), windows of attention (Qwen2.5-VL). Nothing waits for the
GPU: what a picture's grid determines is computed once per grid, on the host.
Shapes: P patches of all pictures, M merged patches, H width of the tower, D width of a head.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch.utils.checkpoint import checkpoint

from medvqa.fast import kernels
from medvqa.fast.attention import Segments, attend
from medvqa.fast.norm_rope import NormRope
from medvqa.fast.transfer import to_device

MAX_GRIDS = 512  # of 512 x 512 pixels, 32 MB in all

Grid = tuple[int, ...]  # patches in time, height and width


class Places(NamedTuple):
    """Where the patches of one picture lie, on the device.

    Attributes:
        positions: (P, 2) row and column.
        taps: (P, 4) entries of Qwen3-VL's table of learned positions.
        weights: (P, 4) of the taps.
        order: (M,) Qwen2.5-VL's merged patches, window by window.
        windows: Patches of each window.
    """

    positions: torch.Tensor
    taps: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    order: torch.Tensor | None = None
    windows: Sequence[int] = ()


class Tower:
    """Computes with a loaded vision tower; gradients flow where its adapter is trained."""

    def __init__(self, module: Any, device: torch.device) -> None:
        self._module, self._device = module, device
        self._merge_size = int(module.spatial_merge_size)
        self._deep = tuple(getattr(module, "deepstack_visual_indexes", ()))
        self._has_windows = hasattr(module, "window_size")
        self._whole = set(getattr(module, "fullatt_block_indexes", ()))  # the others see a window
        self._blocks = [Block(block, module.config) for block in module.blocks]
        self._places_of = lru_cache(maxsize=MAX_GRIDS)(self._derived)

    def features(self, pixels: torch.Tensor, grids: Sequence[Grid]) -> list[torch.Tensor]:
        """Return (M, width of the language model) of the last and of each middle layer.

        Args:
            pixels: (P, values) of all pictures.
            grids: Of each picture.
        """
        module = self._module
        places = [self._places_of(grid) for grid in grids]
        x = self._embed(pixels, places)
        cos, sin = module.rotary_pos_emb(x, torch.cat([own.positions for own in places]))
        half = cos.shape[-1] // 2
        order = self._order(places, grids)
        halves = cos[:, :half].contiguous(), sin[:, :half].contiguous()
        x, cos, sin = (self._windowed(tensor, order) for tensor in (x, *halves))
        pictures, windows = self._segments(places, grids)
        deep = []
        for number, block in enumerate(self._blocks):
            segments = pictures if number in self._whole else windows
            x = block(x, cos, sin, segments)
            if number in self._deep:
                deep.append(module.deepstack_merger_list[self._deep.index(number)](x))
        merged: torch.Tensor = module.merger(x)
        if order is not None:
            merged = merged[torch.argsort(order)]
        return [merged, *deep]

    def _embed(self, pixels: torch.Tensor, places: Sequence[Places]) -> torch.Tensor:
        projection = self._module.patch_embed.proj
        weight = projection.weight
        # Each patch fills the kernel of the convolution, which is therefore a product.
        x = torch.nn.functional.linear(pixels.to(weight.dtype), weight.flatten(1), projection.bias)
        if not hasattr(self._module, "pos_embed"):
            return x
        taps = torch.cat([own.taps for own in places if own.taps is not None])
        weights = torch.cat([own.weights for own in places if own.weights is not None])
        learned = (self._module.pos_embed(taps) * weights[:, :, None]).sum(1)
        embedded: torch.Tensor = x + learned.to(x.dtype)
        return embedded

    def _order(self, places: Sequence[Places], grids: Sequence[Grid]) -> torch.Tensor | None:
        """Return the order of the merged patches (M,) of all pictures, where windows attend."""
        orders, first = [], 0
        for own, (time, height, width) in zip(places, grids, strict=True):
            if own.order is None:
                return None
            orders.append(own.order + first)
            first += time * height * width // self._merge_size**2
        return torch.cat(orders)

    def _windowed(self, x: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
        if order is None:
            return x
        return x.view(len(order), self._merge_size**2, -1)[order].flatten(0, 1)

    def _segments(
        self, places: Sequence[Places], grids: Sequence[Grid]
    ) -> tuple[Segments, Segments]:
        """Return the pictures' frames and the windows, which are frames in most families."""
        lengths = [height * width for time, height, width in grids for _ in range(time)]
        windows = [length for own in places for length in own.windows]
        frames = Segments.of(lengths, self._device)
        return frames, Segments.of(windows, self._device) if windows else frames

    def _derived(self, grid: Grid) -> Places:
        from transformers import vision_utils

        module, one, merge = self._module, torch.tensor([grid]), self._merge_size
        places = Places(self._sent(vision_utils.get_vision_position_ids(one, merge)))
        if hasattr(module, "interpolation_mode"):
            taps, weights = vision_utils.get_vision_interpolation_indices_and_weights(
                one,
                num_grid_per_side=module.num_grid_per_side,
                mode=module.interpolation_mode,
                align_corners=module.interpolation_align_corners,
                spatial_merge_size=merge,
            )
            places = places._replace(taps=self._sent(taps), weights=self._sent(weights))
        if self._has_windows:
            order, starts = vision_utils.get_vision_window_index(
                one, merge, module.window_size, module.patch_size
            )
            places = places._replace(order=self._sent(order), windows=starts.diff().tolist())
        return places

    def _sent(self, tensor: torch.Tensor) -> torch.Tensor:
        return to_device(tensor, self._device)


class Block:
    """One layer of the tower."""

    def __init__(self, module: Any, config: Any) -> None:
        self._module = module
        self._norms = _norm(module.norm1), _norm(module.norm2)
        self._feed_forward: Callable[[torch.Tensor], torch.Tensor] = module.mlp
        first = getattr(module.mlp, "linear_fc1", None)
        # The product's own epilogue computes this form of GELU alone, and has no gradient.
        if type(first) is torch.nn.Linear and config.hidden_act == "gelu_pytorch_tanh":
            self._feed_forward = self._gelu_inside
        self._checkpoints = bool(getattr(module, "gradient_checkpointing", False))

    def __call__(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, segments: Segments
    ) -> torch.Tensor:
        """Return the layer's result (P, H); cos and sin are (P, D / 2)."""
        if self._checkpoints and torch.is_grad_enabled() and self._module.training:
            return checkpoint(self._forward, x, cos, sin, segments, use_reentrant=False)  # type: ignore[no-any-return]
        return self._forward(x, cos, sin, segments)

    def _forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, segments: Segments
    ) -> torch.Tensor:
        attention = self._module.attn
        qkv = attention.qkv(self._norms[0](x)).view(len(x), 3 * attention.num_heads, -1)
        qk, v = qkv.split([2 * attention.num_heads, attention.num_heads], dim=1)
        turn = NormRope(None, None, 0.0, cos, sin)
        turned = kernels.norm_rope(qk, turn, attention.num_heads)
        q, k = turned.chunk(2, dim=1)
        attended = attend(q, k, v, segments, attention.scaling, causal=False)
        x = x + attention.proj(attended)
        return x + self._feed_forward(self._norms[1](x))

    def _gelu_inside(self, x: torch.Tensor) -> torch.Tensor:
        mlp = self._module.mlp
        first = mlp.linear_fc1
        if not x.is_cuda or torch.is_grad_enabled() or x.dtype != first.weight.dtype:
            return mlp(x)  # type: ignore[no-any-return]
        hidden = torch._addmm_activation(first.bias, x, first.weight.t(), use_gelu=True)
        return mlp.linear_fc2(hidden)  # type: ignore[no-any-return]


def _norm(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return LayerNorm as it is, and RMSNorm, which transformers spells out, as one kernel."""
    if isinstance(module, torch.nn.LayerNorm):
        return module
    return partial(kernels.rms_norm, weight=module.weight, eps=float(module.variance_epsilon))
