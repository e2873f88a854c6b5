"""The same mathematics in fewer and larger GPU kernels; see docs/engine.md for what was measured.

The language model computes on packed sequences (`medvqa.decoder`), logits are those of the answer
alone, features of a picture that comes again are stored ones, and the vision tower's attention,
which transformers runs an image at a time, is one call.
"""

import logging
import types
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from medvqa.collate import Sample
from medvqa.config import Backend
from medvqa.model import VISION_TOWER, LoadedModel

if TYPE_CHECKING:
    import torch

    from medvqa.decoder import Packed

log = logging.getLogger(__name__)

FEATURES = "_medvqa_features"
VISION_CACHE_BYTES = 4 * 2**30
ARCHITECTURES = ("qwen2_vl", "qwen3_vl")


def is_supported(loaded: LoadedModel) -> bool:
    """Whether `PackedModel` can compute it: Unsloth has replaced the layers by its own."""
    return (
        loaded.backend is Backend.transformers and loaded.inner.config.model_type in ARCHITECTURES
    )


class PackedModel:
    """A loaded model that computes on sequences without padding, for training and answering."""

    def __init__(self, loaded: LoadedModel, image_token_id: int) -> None:
        from medvqa.decoder import Decoder

        self._loaded = loaded
        self._inner = loaded.inner
        self._image_token_id = image_token_id
        self._merge_size = int(loaded.processor.image_processor.merge_size)
        self._vision = shared_features(loaded)
        self.decoder = Decoder(loaded)
        if loaded.device.type == "cuda" and loaded.dtype.itemsize == 2:
            attend_to_all_pictures_at_once(getattr(self._inner.model, VISION_TOWER))

    def loss(self, samples: Sequence[Sample], num_answer_tokens: int) -> "torch.Tensor":
        """Return the answer tokens' summed cross-entropy over `num_answer_tokens`.

        The value is that of the model's own loss; the logits of the other tokens, which it
        computes and throws away, are never made.

        Args:
            samples: What is computed at once.
            num_answer_tokens: Of the whole effective batch.
        """
        import numpy as np
        import torch

        packed = self.pack(samples, [sample.prompt_ids + sample.answer_ids for sample in samples])
        targets = np.concatenate([sample.answer_ids for sample in samples])
        # A token is predicted by the one before it.
        ends = np.cumsum([sample.num_tokens for sample in samples]) - 1
        rows = [
            end - np.arange(len(s.answer_ids), 0, -1) for s, end in zip(samples, ends, strict=True)
        ]
        rows_on_device, targets_on_device = self._on_device(np.concatenate(rows), targets)
        hidden = self.decoder.train(packed, training=bool(self._inner.training))
        logits = self.logits(hidden[rows_on_device])
        total = torch.nn.functional.cross_entropy(
            logits.float(), targets_on_device, reduction="sum"
        )
        return total / num_answer_tokens

    def pack(self, samples: Sequence[Sample], rows: "Sequence[Sequence[int]]") -> "Packed":
        """Return the embeddings of token ids, one row a sample, with the samples' pictures."""
        import numpy as np

        from medvqa.decoder import Packed

        ids = np.concatenate(rows)
        image_token, merge = self._image_token_id, self._merge_size
        positions = np.concatenate(
            [
                rotary_positions(row, _grids(sample), image_token_id=image_token, merge_size=merge)
                for sample, row in zip(samples, rows, strict=True)
            ],
            axis=1,
        )
        places = np.flatnonzero(ids == image_token)
        on_device, flat, picture_rows = self._on_device(ids, positions.ravel(), places)
        x = self.embed(on_device)
        lengths = [len(row) for row in rows]
        features = self._features(samples)
        if features is None:
            return Packed(x, flat.view(3, -1), lengths)
        pooled, *deep = features
        assert len(places) == len(pooled), "pictures and their tokens differ in number"
        x = x.index_copy(0, picture_rows, pooled.to(x.dtype))
        return Packed(x, flat.view(3, -1), lengths, picture_rows, deep)

    def embed(self, ids: "torch.Tensor") -> "torch.Tensor":
        """Return the embeddings (N, H) of token ids (N,)."""
        result: torch.Tensor = self._inner.get_input_embeddings()(ids)
        return result

    def logits(self, hidden: "torch.Tensor") -> "torch.Tensor":
        """Return the logits of rows of the last layer's result."""
        result: torch.Tensor = self._inner.lm_head(self.decoder.last_norm(hidden))
        return result

    def _on_device(self, *arrays: Any) -> "list[torch.Tensor]":
        """Bring arrays of integers to the device in one transfer that nobody waits for."""
        import numpy as np
        import torch

        tensor = torch.from_numpy(np.concatenate(arrays).astype(np.int64, copy=False))
        if self._loaded.device.type == "cuda":
            tensor = tensor.pin_memory().to(self._loaded.device, non_blocking=True)
        return list(tensor.split_with_sizes([len(array) for array in arrays]))

    def _features(self, samples: Sequence[Sample]) -> "list[torch.Tensor] | None":
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
        if self._vision is not None:
            return self._vision.features(pictures, self._compute)
        every = self._compute([p for _, p, _ in pictures], [grid for *_, grid in pictures])
        return [torch.cat(layer) for layer in zip(*every, strict=True)]

    def _compute(
        self, patches: "Sequence[torch.Tensor]", grids: "Sequence[torch.Tensor]"
    ) -> "list[list[torch.Tensor]]":
        """Return the layers' features of each picture."""
        import torch

        device = self._loaded.device
        # Joined there: six megabytes a picture take long to copy together on the host.
        pixels = torch.cat([own.to(device) for own in patches])
        grid = torch.stack(list(grids)).to(device)
        with self._loaded.autocast():  # where the tower is trained, its adapter may be in float32
            output = self._inner.model.get_image_features(pixels, grid, return_dict=True)
        pooled = output.pooler_output
        sizes = [len(features) for features in pooled]
        deep = [layer.split(sizes) for layer in getattr(output, "deepstack_features", None) or ()]
        return [[own, *(layer[n] for layer in deep)] for n, own in enumerate(pooled)]


def _grids(sample: Sample) -> list[tuple[int, int, int]]:
    return [] if sample.image_grid_thw is None else sample.image_grid_thw.tolist()


def rotary_positions(
    row: Sequence[int],
    grids: Sequence[tuple[int, int, int]],
    *,
    image_token_id: int,
    merge_size: int,
) -> Any:
    """Return each token's time, height and width as an array (3, T).

    Text counts on in all three; a picture's tokens differ by their row and column, and the text
    behind it goes on from its largest coordinate (Wang et al., Qwen2-VL, 2024). It is what the
    model's own `get_rope_index` gives, without a loop over tokens.

    Args:
        row: Token ids of one sequence.
        grids: Patches in time, height and width of its pictures, in order.
        image_token_id: Stands once for each merged patch.
        merge_size: Patches a side that become one token.
    """
    import numpy as np

    parts, start, position = [], 0, 0
    for time, height, width in grids:
        first = row.index(image_token_id, start)
        shape = (time, height // merge_size, width // merge_size)
        parts.append(np.tile(np.arange(position, position + first - start), (3, 1)))
        position += first - start
        parts.append(np.indices(shape).reshape(3, -1) + position)
        position += max(shape[1:])
        start = first + parts[-1].shape[1]
    parts.append(np.tile(np.arange(position, position + len(row) - start), (3, 1)))
    return np.concatenate(parts, axis=1)


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
