"""Samples -> packed embeddings with positions and pictures; rows of the last layer -> logits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from medvqa.fast.decoder import Decoder, Packed
from medvqa.fast.pictures import Pictures
from medvqa.fast.transfer import integers_to_device
from medvqa.models.loaded import LoadedModel
from medvqa.models.sample import Sample


class PackedModel:
    """The loaded model's own weights around the decoder, for packed sequences.

    Attributes:
        decoder: The language model's layers.
        image_token_id: Stands once for each merged patch of a picture.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.image_token_id = int(loaded.processor.image_token_id)
        self.decoder = Decoder(loaded)
        self._loaded = loaded
        self._inner = loaded.inner
        self._pictures = Pictures(loaded)

    def pack(self, samples: Sequence[Sample], rows: Sequence[Sequence[int]]) -> Packed:
        """Return the embeddings of token ids, with the samples' pictures.

        Args:
            samples: Whose pictures are needed.
            rows: Token ids, one row per sample; further rows have no pictures.
        """
        ids = np.concatenate(rows)
        grids = [*map(_grids, samples), *[[]] * (len(rows) - len(samples))]
        image_token, merge = self.image_token_id, self._pictures.merge_size
        positions = np.concatenate(
            [
                rotary_positions(row, own, image_token_id=image_token, merge_size=merge)
                for own, row in zip(grids, rows, strict=True)
            ],
            axis=1,
        )
        places = np.flatnonzero(ids == image_token)
        arrays = (ids, positions.ravel(), places)
        on_device, flat, picture_rows = integers_to_device(arrays, self._loaded.device)
        x = self.embed(on_device)
        lengths = [len(row) for row in rows]
        features = self._pictures.features(samples)
        if features is None:
            return Packed(x, flat.view(3, -1), lengths)
        pooled, *deep = features
        assert len(places) == len(pooled), "pictures and their tokens differ in number"
        x = x.index_copy(0, picture_rows, pooled.to(x.dtype))
        return Packed(x, flat.view(3, -1), lengths, picture_rows, deep)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (N, H) of token ids (N,)."""
        result: torch.Tensor = self._inner.get_input_embeddings()(ids)
        return result

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of rows of the last layer's result."""
        result: torch.Tensor = self._inner.lm_head(self.decoder.last_norm(hidden))
        return result


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

    A text token is one further in all three. A picture's tokens differ by their row and column. The
    text behind a picture continues from the picture's largest coordinate. The model's own
    `get_rope_index` gives the same, with a loop over tokens. Source: Wang et al., Qwen2-VL, 2024.

    Args:
        row: Token ids of one sequence.
        grids: Patches in time, height and width of its pictures, in order.
        image_token_id: Stands once for each merged patch.
        merge_size: Patches per side that become one token.
    """
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
