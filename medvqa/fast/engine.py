"""The same mathematics in fewer and larger GPU kernels; see docs/engine.md for what was measured.

The language model computes on packed sequences (`medvqa.fast.decoder`), logits are those of the
answer alone, and pictures go through the vision tower as `medvqa.fast.vision` says.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from medvqa.config.model import Backend
from medvqa.fast.vision import Pictures, sent
from medvqa.models.loaded import LoadedModel
from medvqa.models.sample import Sample

if TYPE_CHECKING:
    import torch

    from medvqa.fast.decoder import Packed

ARCHITECTURES = ("qwen2_vl", "qwen3_vl")


def is_supported(loaded: LoadedModel) -> bool:
    """Whether `PackedModel` can compute it: Unsloth has replaced the layers by its own."""
    return (
        loaded.backend is Backend.transformers and loaded.inner.config.model_type in ARCHITECTURES
    )


class PackedModel:
    """A loaded model that computes on sequences without padding, for training and answering."""

    def __init__(self, loaded: LoadedModel, image_token_id: int) -> None:
        from medvqa.fast.decoder import Decoder

        self._loaded = loaded
        self._inner = loaded.inner
        self._image_token_id = image_token_id
        self._pictures = Pictures(loaded)
        self.decoder = Decoder(loaded)

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

        from medvqa.fast.decoder import Packed

        ids = np.concatenate(rows)
        image_token, merge = self._image_token_id, self._pictures.merge_size
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
        features = self._pictures.features(samples)
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

        joined = np.concatenate(arrays).astype(np.int64, copy=False)
        tensor = sent(torch.from_numpy(joined), self._loaded.device)
        return list(tensor.split_with_sizes([len(array) for array in arrays]))


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
