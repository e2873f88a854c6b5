"""Rotary positions of Qwen-VL's tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np


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
