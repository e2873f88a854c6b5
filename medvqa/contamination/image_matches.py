"""Which training pictures are evaluation pictures: by their bytes, and by their hashes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medvqa.contamination.near import NearIndex
from medvqa.contamination.picture_hash import HashedPicture, hash_pictures, hash_words
from medvqa.data.example import Example, ImageSource
from medvqa.data.storage.cache import Cache
from medvqa.tracking.progress import track

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLOCK = 2048  # training pictures whose hashes are held at once

Key = tuple[str, str]  # name and identity of a picture, as the data set gives them


@dataclass(frozen=True)
class Match:
    """A training picture that is an evaluation picture.

    Attributes:
        distance: Bits in which the hashes differ; None if the files are equal byte by byte.
        mirrored: Whether only the mirrored or upside-down picture matches.
    """

    evaluation: str
    training: str
    distance: int | None
    mirrored: bool


def keys_of(example: Example) -> list[Key]:
    """Return what tells the example's pictures from others, before a byte is read."""
    pairs = zip(example.images, example.image_ids, strict=True)
    return [(image.name, image_id) for image, image_id in pairs]


def distinct_pictures(examples: Sequence[Example]) -> dict[Key, ImageSource]:
    """Return each picture once, in the order in which the examples show them."""
    return {
        key: image
        for example in examples
        for key, image in zip(keys_of(example), example.images, strict=True)
    }


class PictureMatches:
    """The evaluation pictures, and the training pictures that are among them.

    Attributes:
        index_of: Number of each evaluation picture; equal files have one number.
        matches: In the order of the training pictures.
        indices_by_key: Numbers of the evaluation pictures that a training picture is.
        same_file: Numbers of those that occur byte by byte.
        upright: Numbers of those that occur not only mirrored.
        num_blank: Pictures without contrast.
        unreadable: Why a picture cannot be read.
    """

    def __init__(
        self, sources: Mapping[Key, ImageSource], cache: Cache, *, max_distance: int
    ) -> None:
        import numpy as np

        self.index_of: dict[Key, int] = {}
        self.matches: list[Match] = []
        self.indices_by_key: dict[Key, set[int]] = {}
        self.same_file: set[int] = set()
        self.upright: set[int] = set()
        self.num_blank = 0
        self.unreadable: dict[Key, str] = {}
        self._cache = cache
        self._names: list[str] = []
        self._by_sha256: dict[bytes, int] = {}
        self._owners: list[int] = []  # of the hashes
        hashes = self._hash_evaluation(sources)
        _, self._num_orientations, self._num_crops, num_words = hashes.shape
        # A copy may be cut smaller than the evaluation picture, or the other way round.
        whole = np.ascontiguousarray(hashes[:, :, 0])
        self._cropped = NearIndex(hashes.reshape(-1, num_words), max_distance=max_distance)
        self._whole = NearIndex(whole.reshape(-1, num_words), max_distance=max_distance)

    def _hash_evaluation(self, sources: Mapping[Key, ImageSource]) -> "NDArray[np.uint64]":
        """Return all hashes of each evaluation picture that has some."""
        import numpy as np

        hashes = []
        results = hash_pictures(list(sources.values()), self._cache, mirrored=True)
        keys = track(list(sources), description="hashing evaluation pictures")
        for key, result in zip(keys, results, strict=True):
            if result.error is not None:
                self.unreadable[key] = result.error
                continue
            is_new = result.sha256 not in self._by_sha256
            index = self._by_sha256.setdefault(result.sha256, len(self._names))
            self.index_of[key] = index
            if is_new:
                self._names.append(result.name)
                self.num_blank += not result.hashes
                if result.hashes:
                    self._owners.append(index)
                    hashes.append(hash_words(result.hashes))
        return np.stack(hashes) if hashes else np.empty((0, 4, 11, 4), np.uint64)

    def compare(self, sources: Mapping[Key, ImageSource]) -> None:
        """Compare training pictures with all evaluation pictures, block by block."""
        keys = list(sources)
        blocks = [keys[start : start + BLOCK] for start in range(0, len(keys), BLOCK)]
        for block in track(blocks, description="comparing pictures"):
            images = [sources[key] for key in block]
            self._compare(block, list(hash_pictures(images, self._cache, mirrored=False)))

    def _compare(self, keys: Sequence[Key], pictures: Sequence[HashedPicture]) -> None:
        import numpy as np

        for key, picture in zip(keys, pictures, strict=True):
            if picture.error is not None:
                self.unreadable[key] = picture.error
                continue
            self.num_blank += not picture.hashes
            index = self._by_sha256.get(picture.sha256)
            if index is not None:
                self.same_file.add(index)
                self._add_match(key, index, picture.name, None, mirrored=False)
        hashed = [n for n, picture in enumerate(pictures) if picture.hashes]
        if not hashed or not self._owners:
            return
        hashes = np.concatenate([hash_words(pictures[n].hashes) for n in hashed])
        for (position, index), (distance, mirrored) in self._near(hashes).items():
            key, picture = keys[hashed[position]], pictures[hashed[position]]
            if index not in self.indices_by_key.get(key, ()):
                self._add_match(key, index, picture.name, distance, mirrored=mirrored)

    def _near(self, hashes: "NDArray[np.uint64]") -> dict[tuple[int, int], tuple[int, bool]]:
        """Return the smallest distance of each pair, and whether it is a mirrored one."""
        best: dict[tuple[int, int], tuple[int, bool]] = {}
        num_crops = self._num_crops
        whole = self._cropped.search(hashes[:, 0])
        parts = self._whole.search(hashes[:, 1:].reshape(-1, hashes.shape[2]))
        for (query, index, distance), per_query, per_index in (
            (whole, 1, num_crops),
            (parts, num_crops - 1, 1),
        ):
            positions, orientations = query // per_query, index // per_index
            for p, o, d in zip(
                positions.tolist(), orientations.tolist(), distance.tolist(), strict=True
            ):
                owner, orientation = divmod(o, self._num_orientations)
                pair = (p, self._owners[owner])
                best[pair] = min(best.get(pair, (999, True)), (d, orientation > 0))
        return best

    def _add_match(
        self, key: Key, index: int, name: str, distance: int | None, *, mirrored: bool
    ) -> None:
        self.indices_by_key.setdefault(key, set()).add(index)
        if not mirrored:
            self.upright.add(index)
        self.matches.append(Match(self._names[index], name, distance, mirrored))
