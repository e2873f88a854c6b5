"""Which training pictures are evaluation pictures: by their bytes, and by their hashes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from medvqa.contamination.near import NearIndex
from medvqa.contamination.picture_hash import HashedPicture, hash_pictures, hash_words
from medvqa.data.example import Example, ImageSource
from medvqa.data.storage.cache import Cache
from medvqa.tracking.progress import track

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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


@dataclass
class EvaluationPictures:
    """The evaluation pictures: found by name, by bytes, by hash."""

    index_of: dict[Key, int] = field(default_factory=dict)
    by_sha256: dict[bytes, int] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    num_blank: int = 0
    unreadable: dict[Key, str] = field(default_factory=dict)


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


def hash_evaluation(
    sets: Mapping[str, Sequence[Example]], pictures: EvaluationPictures, cache: Cache
) -> "tuple[list[int], NDArray[np.uint64]]":
    """Return the evaluation pictures that have a hash: their indices, and all hashes of each."""
    import numpy as np

    sources = distinct_pictures([example for examples in sets.values() for example in examples])
    owners, hashes = [], []
    results = hash_pictures(list(sources.values()), cache, mirrored=True)
    keys = track(list(sources), description="hashing evaluation pictures")
    for key, result in zip(keys, results, strict=True):
        if result.error is not None:
            pictures.unreadable[key] = result.error
            continue
        is_new = result.sha256 not in pictures.by_sha256
        index = pictures.by_sha256.setdefault(result.sha256, len(pictures.names))
        pictures.index_of[key] = index
        if is_new:
            pictures.names.append(result.name)
            pictures.num_blank += not result.hashes
            if result.hashes:
                owners.append(index)
                hashes.append(hash_words(result.hashes))
    return owners, np.stack(hashes) if hashes else np.empty((0, 4, 11, 4), np.uint64)


class PictureFinder:
    """Takes training pictures block by block and keeps those that are evaluation pictures."""

    def __init__(
        self,
        pictures: EvaluationPictures,
        evaluation: "tuple[list[int], NDArray[np.uint64]]",
        max_distance: int,
    ) -> None:
        import numpy as np

        self.pictures = pictures
        self.owners, hashes = evaluation
        _, self.num_orientations, self.num_crops, num_words = hashes.shape
        # A copy may be cut smaller than the evaluation picture, or the other way round.
        whole = np.ascontiguousarray(hashes[:, :, 0])
        self._cropped = NearIndex(hashes.reshape(-1, num_words), max_distance=max_distance)
        self._whole = NearIndex(whole.reshape(-1, num_words), max_distance=max_distance)
        self.matches: list[Match] = []
        self.indices_by_key: dict[Key, set[int]] = {}
        self.same_file: set[int] = set()
        self.upright: set[int] = set()

    def add(self, keys: Sequence[Key], block: Sequence[HashedPicture]) -> None:
        """Compare some training pictures with all evaluation pictures."""
        import numpy as np

        readable = [p for p in block if p.error is None]
        self.pictures.unreadable |= {
            key: p.error for key, p in zip(keys, block, strict=True) if p.error is not None
        }
        self.pictures.num_blank += sum(not p.hashes for p in readable)
        for key, picture in zip(keys, block, strict=True):
            index = self.pictures.by_sha256.get(picture.sha256)
            if index is not None:
                self.same_file.add(index)
                self._add_match(key, index, picture.name, None, mirrored=False)
        hashed = [n for n, p in enumerate(block) if p.hashes]
        if not hashed or not self.owners:
            return
        hashes = np.concatenate([hash_words(block[n].hashes) for n in hashed])
        for (position, index), (distance, mirrored) in self._near(hashes).items():
            key, picture = keys[hashed[position]], block[hashed[position]]
            if index not in self.indices_by_key.get(key, ()):
                self._add_match(key, index, picture.name, distance, mirrored=mirrored)

    def _near(self, hashes: "NDArray[np.uint64]") -> dict[tuple[int, int], tuple[int, bool]]:
        """Return the smallest distance of each pair, and whether it is a mirrored one."""
        best: dict[tuple[int, int], tuple[int, bool]] = {}
        num_crops = self.num_crops
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
                owner, orientation = divmod(o, self.num_orientations)
                pair = (p, self.owners[owner])
                best[pair] = min(best.get(pair, (999, True)), (d, orientation > 0))
        return best

    def _add_match(
        self, key: Key, index: int, name: str, distance: int | None, *, mirrored: bool
    ) -> None:
        self.indices_by_key.setdefault(key, set()).add(index)
        if not mirrored:
            self.upright.add(index)
        self.matches.append(Match(self.pictures.names[index], name, distance, mirrored))
