"""The vision tower: all pictures of a batch at once, and none of them twice.

Shapes: P patches of all pictures, D values of a patch.
"""

import types
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from medvqa.models.adapter import VISION_TOWER
from medvqa.models.loaded import LoadedModel
from medvqa.models.sample import Sample

if TYPE_CHECKING:
    import torch

FEATURES = "_medvqa_features"
VISION_CACHE_BYTES = 4 * 2**30
MAX_GRIDS = 512  # of 512 x 512 pixels, 32 MB in all


def sent(tensor: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """Bring a tensor to the device without waiting for it."""
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class Pictures:
    """Gives the vision tower's features of the pictures in samples.

    Nothing here waits for the GPU, or the GPU would then wait for the host. What the tower derives
    from a picture's grid is made once a grid and handed to it: from a grid on the GPU it would
    read lengths back, once a block.

    Attributes:
        merge_size: Patches a side that become one token.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.merge_size = int(loaded.processor.image_processor.merge_size)
        self._loaded = loaded
        self._kept = shared_features(loaded)
        self._tower = getattr(loaded.inner.model, VISION_TOWER)
        self._places: dict[tuple[int, int, int], dict[str, torch.Tensor]] = {}
        if loaded.device.type == "cuda" and loaded.dtype.itemsize == 2:
            attend_to_all_pictures_at_once(self._tower)

    def features(self, samples: Sequence[Sample]) -> "list[torch.Tensor] | None":
        """Return features of all pictures in order: the tower's last and middle layers'."""
        import torch

        pictures: list[tuple[str, torch.Tensor, torch.Tensor]] = []
        for sample in samples:
            if sample.pixel_values is None or sample.image_grid_thw is None:
                continue
            grids = sample.image_grid_thw
            patches = sample.pixel_values.split_with_sizes(grids.prod(-1).tolist())
            pictures += zip(sample.image_keys, patches, grids, strict=True)
        if not pictures:
            return None
        if self._kept is not None:
            return self._kept.features(pictures, self._compute)
        every = self._compute([p for _, p, _ in pictures], [grid for *_, grid in pictures])
        return [torch.cat(layer) for layer in zip(*every, strict=True)]

    def _compute(
        self, patches: "Sequence[torch.Tensor]", grids: "Sequence[torch.Tensor]"
    ) -> "list[list[torch.Tensor]]":
        """Return the layers' features of each picture."""
        import torch

        pixels = sent_together(patches, self._loaded.device)
        grid = torch.stack(list(grids))
        # Where the tower is trained, its adapter may be in float32. Features that are kept are the
        # same whoever asks first.
        with nullcontext() if self._kept is not None else self._loaded.autocast():
            output = self._loaded.inner.model.get_image_features(
                pixels, grid, return_dict=True, **self._derived(grid.tolist())
            )
        pooled = output.pooler_output
        sizes = [len(features) for features in pooled]
        deep = [layer.split(sizes) for layer in getattr(output, "deepstack_features", None) or ()]
        return [[own, *(layer[n] for layer in deep)] for n, own in enumerate(pooled)]

    def _derived(self, grids: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Return what the tower would derive from the grids, by its names for it."""
        import torch

        every = [self._places_of((time, height, width)) for time, height, width in grids]
        lengths = [height * width for time, height, width in grids for _ in range(time)]
        starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        return {
            **{name: torch.cat([own[name] for own in every]) for name in every[0]},
            "cu_seqlens": sent(starts, self._loaded.device),
            "max_seqlen": max(lengths),
        }

    def _places_of(self, grid: tuple[int, int, int]) -> "dict[str, torch.Tensor]":
        """Return where the patches of one picture lie, on the device."""
        import torch
        from transformers import vision_utils

        found = self._places.get(grid)
        if found is not None:
            return found
        tower, one = self._tower, torch.tensor([grid])
        made = {"position_ids": vision_utils.get_vision_position_ids(one, self.merge_size)}
        if hasattr(tower, "interpolation_mode"):  # Qwen3-VL's learned positions
            taps, weights = vision_utils.get_vision_interpolation_indices_and_weights(
                one,
                num_grid_per_side=tower.num_grid_per_side,
                mode=tower.interpolation_mode,
                align_corners=tower.interpolation_align_corners,
                spatial_merge_size=self.merge_size,
            )
            made |= {"interp_indices": taps, "interp_weights": weights}
        if len(self._places) == MAX_GRIDS:
            self._places.clear()
        found = {name: sent(tensor, self._loaded.device) for name, tensor in made.items()}
        self._places[grid] = found
        return found


def sent_together(patches: "Sequence[torch.Tensor]", device: "torch.device") -> "torch.Tensor":
    """Bring the patches of several pictures to the device as one tensor (P, D)."""
    import numpy as np
    import torch

    if device.type != "cuda":
        return torch.cat(list(patches))
    shape = (sum(map(len, patches)), *patches[0].shape[1:])
    joined = torch.empty(shape, dtype=patches[0].dtype, pin_memory=True)
    # Bytes, by one thread: one of PyTorch's that lacks a core holds the others up for 10 ms.
    source = [own.contiguous().view(torch.uint8).numpy() for own in patches]
    np.concatenate(source, out=joined.view(torch.uint8).numpy())
    return joined.to(device, non_blocking=True)


def attend_to_all_pictures_at_once(tower: Any) -> None:
    """Replace the vision tower's attention by one call over all pictures, each within itself.

    Doing it again changes nothing. The call needs a GPU and 16 bits.
    """
    import torch
    from torch.nn.attention.varlen import varlen_attn

    def attend(
        module: Any,
        query: "torch.Tensor",
        key: "torch.Tensor",
        value: "torch.Tensor",
        attention_mask: None,
        *,
        cu_seq_lens_q: "torch.Tensor",
        max_length_q: int,
        scaling: float,
        **_: Any,
    ) -> "tuple[torch.Tensor, None]":
        q, k, v = (tensor.squeeze(0).transpose(0, 1).contiguous() for tensor in (query, key, value))
        starts, longest = cu_seq_lens_q.to(torch.int32), int(max_length_q)
        output = varlen_attn(q, k, v, starts, starts, longest, longest, scale=scaling)
        return output.unsqueeze(0), None  # type: ignore[union-attr]

    for block in tower.blocks:
        _attend_at_once(block.attn, attend)


def _attend_at_once(attention: Any, attend: Callable[..., Any]) -> None:
    """Give one vision attention layer the branch that transformers keeps for flash-attn."""
    from importlib import import_module

    source = import_module(type(attention).__module__)

    def forward(
        self: Any,
        hidden_states: "torch.Tensor",
        cu_seqlens: "torch.Tensor",
        position_embeddings: "tuple[torch.Tensor, torch.Tensor]",
        max_seqlen: int | None = None,
        **_: Any,
    ) -> "torch.Tensor":
        length = hidden_states.shape[0]
        qkv = self.qkv(hidden_states).reshape(length, 3, self.num_heads, -1)
        query, key, value = qkv.permute(1, 0, 2, 3).unbind(0)
        query, key = source.apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        longest = max_seqlen or int((cu_seqlens[1:] - cu_seqlens[:-1]).max())
        output, _unused = attend(
            self,
            *(t.to(value.dtype).transpose(0, 1).unsqueeze(0) for t in (query, key, value)),
            None,
            cu_seq_lens_q=cu_seqlens,
            max_length_q=longest,
            scaling=self.scaling,
        )
        result: torch.Tensor = self.proj(output.reshape(length, -1))
        return result

    attention.forward = types.MethodType(forward, attention)


def shared_features(loaded: LoadedModel) -> "VisionCache | None":
    """Return the model's one cache of picture features, for training and answering alike.

    None on a CPU, where a batch's composition changes the last bits and a continued run would no
    longer equal a whole one; and where the vision tower itself is trained.
    """
    if loaded.device.type == "cpu" or not loaded.has_frozen_vision:
        return None
    found = kept_features(loaded)
    if found is None:
        found = VisionCache(max_bytes=VISION_CACHE_BYTES)
        setattr(loaded.model, FEATURES, found)
    return found


def kept_features(loaded: LoadedModel) -> "VisionCache | None":
    """Return the cache if the model has one by now."""
    found: VisionCache | None = getattr(loaded.model, FEATURES, None)
    return found


class VisionCache:
    """Keeps the vision tower's features of the last pictures on the GPU.

    A data set asks about seven questions an image, and a frozen tower answers the same each time.

    Attributes:
        num_computed: Pictures that went through the tower.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[str, Sequence[torch.Tensor]] = OrderedDict()
        self.num_computed = 0

    @property
    def num_bytes(self) -> int:
        """GPU memory that the features take."""
        return self._bytes

    def clear(self) -> None:
        """Forget all pictures."""
        self._kept.clear()
        self._bytes = 0

    def features(
        self,
        pictures: "Sequence[tuple[str, torch.Tensor, torch.Tensor]]",
        compute: "Callable[..., list[list[torch.Tensor]]]",
    ) -> "list[torch.Tensor]":
        """Return a tensor a layer: the features of all pictures in order.

        Args:
            pictures: Identity, patches (P, D) on the CPU and grid (3,) of each.
            compute: The tower: patches and grids to the layers' features of each picture.
        """
        import torch

        missing = {key: (p, grid) for key, p, grid in pictures if key not in self._kept}
        if missing:
            patches, grids = zip(*missing.values(), strict=True)
            with torch.no_grad():
                self._store(list(missing), compute(patches, grids))
        found = []
        for key, _, _ in pictures:
            self._kept.move_to_end(key)
            found.append(self._kept[key])
        self._evict(len({key for key, _, _ in pictures}))
        return [torch.cat(layer) for layer in zip(*found, strict=True)]

    def _store(self, keys: Sequence[str], computed: "list[list[torch.Tensor]]") -> None:
        self.num_computed += len(keys)
        for key, layers in zip(keys, computed, strict=True):
            # Copies: a view would keep the whole batch's features alive.
            self._kept[key] = [layer.clone() for layer in layers]
            self._bytes += sum(layer.nbytes for layer in layers)

    def _evict(self, num_needed: int) -> None:
        while self._bytes > self._max_bytes and len(self._kept) > num_needed:
            _, layers = self._kept.popitem(last=False)
            self._bytes -= sum(layer.nbytes for layer in layers)
