"""Hashes within a Hamming distance, without comparing every pair.

This is multi-index hashing. A hash of 256 bits is split into 16 words of 16 bits. Two hashes that
differ in fewer than 32 bits have a word in which they differ in one bit at most. Only such pairs
are compared.

Source: Norouzi, Punjani and Fleet, Fast search in Hamming space with multi-index hashing, CVPR
2012.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Hashes = NDArray[np.uint64]  # (n, 4): 256 bits each
    Indices = NDArray[np.int64]

NUM_WORDS, WORD_BITS = 16, 16
MAX_DISTANCE = 2 * NUM_WORDS - 1
BLOCK = 4096  # queries at once, so that memory stays flat


class NearIndex:
    """Finds which of the indexed hashes lie near a query.

    Args:
        hashes: To be found.
        max_distance: Bits, at most `MAX_DISTANCE`.
    """

    def __init__(self, hashes: "Hashes", *, max_distance: int) -> None:
        import numpy as np

        assert 0 <= max_distance <= MAX_DISTANCE
        self.max_distance = max_distance
        self._hashes = np.ascontiguousarray(hashes)
        # Fewer bits than words leave one word unchanged; else look one bit around it too.
        flips = [0] if max_distance < NUM_WORDS else [0, *(1 << bit for bit in range(WORD_BITS))]
        self._tables = [_table(word, flips) for word in _words(self._hashes).T]

    def search(self, queries: "Hashes") -> "tuple[Indices, Indices, Indices]":
        """Return query, index and distance of each pair within the distance; pairs come once."""
        import numpy as np

        matches = [
            (query + start, index, distance)
            for start in range(0, len(queries), BLOCK)
            for query, index, distance in [self._search_block(queries[start : start + BLOCK])]
        ]
        if not matches:
            nothing = np.empty(0, np.int64)
            return nothing, nothing, nothing
        query, index, distance = (np.concatenate(parts) for parts in zip(*matches, strict=True))
        return query, index, distance

    def _search_block(self, queries: "Hashes") -> "tuple[Indices, Indices, Indices]":
        import numpy as np

        queries = np.ascontiguousarray(queries)
        pairs, distances = [], []
        for query, index in self._candidates(queries):
            differing = np.bitwise_count(queries[query] ^ self._hashes[index])
            distance = differing.sum(axis=1, dtype=np.int64)
            near = distance <= self.max_distance
            pairs.append(query[near] * len(self._hashes) + index[near])
            distances.append(distance[near])
        # A pair that agrees in several words was found several times.
        unique, first = np.unique(np.concatenate(pairs), return_index=True)
        query, index = np.divmod(unique, max(1, len(self._hashes)))
        return query, index, np.concatenate(distances)[first]

    def _candidates(self, queries: "Hashes") -> "Iterator[tuple[Indices, Indices]]":
        import numpy as np

        for word, (starts, members) in zip(_words(queries).T, self._tables, strict=True):
            low = starts[word]
            counts = starts[word.astype(np.int64) + 1] - low
            query = np.repeat(np.arange(len(queries)), counts)
            within = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
            yield query, members[np.repeat(low, counts) + within]


def _words(hashes: "Hashes") -> "NDArray[np.uint16]":
    import numpy as np

    return hashes.view(np.uint16).reshape(len(hashes), NUM_WORDS)


def _table(word: "NDArray[np.uint16]", flips: list[int]) -> "tuple[Indices, Indices]":
    """Return where each word's members start, and the members: hashes that have it, or nearly."""
    import numpy as np

    keys = (word[:, None] ^ np.array(flips, dtype=np.uint16)).ravel()
    order = np.argsort(keys, kind="stable")
    starts = np.searchsorted(keys[order], np.arange(2**WORD_BITS + 1))
    return starts.astype(np.int64), order // len(flips)
