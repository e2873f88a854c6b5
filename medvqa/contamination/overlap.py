"""Which evaluation pictures and questions occur in the training pool."""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from medvqa.config import Normalizer
from medvqa.contamination.hash_cache import HashCache
from medvqa.contamination.hashing import HashedPicture, hash_pictures
from medvqa.contamination.near import NearIndex
from medvqa.contamination.picture_hash import hash_words
from medvqa.example import Example, ImageSource
from medvqa.metrics import normalize
from medvqa.progress import track

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLOCK = 2048  # training pictures whose hashes are held at once


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


@dataclass(frozen=True, kw_only=True)
class SetOverlap:
    """What of one evaluation set occurs in the training pool.

    Attributes:
        num_pictures: Different files.
        num_same_file: Pictures that occur byte by byte; `num_alike` only by their hash, and of
            these `num_mirrored` only mirrored.
        num_questions_on_shared: Questions about a picture that occurs.
        num_items: Questions that occur with the same answer about the same picture.
        num_text_repeats: Questions that occur with the same answer, but about other pictures.
    """

    name: str
    num_pictures: int
    num_questions: int
    num_same_file: int
    num_alike: int
    num_mirrored: int
    num_questions_on_shared: int
    num_items: int
    num_text_repeats: int

    @property
    def num_shared(self) -> int:
        """Pictures that occur in the training pool."""
        return self.num_same_file + self.num_alike

    @property
    def image_overlap(self) -> float:
        """Share of the set's pictures that occur."""
        return self.num_shared / self.num_pictures if self.num_pictures else 0.0

    @property
    def item_overlap(self) -> float:
        """Share of the set's questions that occur with the same answer and picture."""
        return self.num_items / self.num_questions


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Everything that the gate found.

    Attributes:
        training_rows: Ids of the rows that show a picture of an evaluation set.
        num_training_pictures: Different pictures, duplicates by name counted once.
        num_blank: Pictures without contrast, which only their bytes identify.
        unreadable: Why pictures could not be read.
        max_distance: Bits in which two hashes were allowed to differ.
        seconds: Wall time of hashing and comparing.
    """

    sets: tuple[SetOverlap, ...]
    matches: tuple[Match, ...]
    training_rows: frozenset[str]
    num_training_rows: int
    num_training_pictures: int
    num_blank: int
    unreadable: tuple[str, ...]
    max_distance: int
    seconds: float


Key = tuple[str, str]  # name and identity of a picture, as the data set gives them
Item = tuple[str, str]  # normalised question and answer


@dataclass
class _Pictures:
    """The evaluation pictures: found by name, by bytes, by hash."""

    index_of: dict[Key, int] = field(default_factory=dict)
    by_sha256: dict[bytes, int] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    num_blank: int = 0
    unreadable: dict[Key, str] = field(default_factory=dict)


def find_overlap(
    training: Sequence[Example],
    sets: Mapping[str, Sequence[Example]],
    cache: HashCache,
    *,
    max_distance: int,
) -> Overlap:
    """Compare the training pool with every evaluation set.

    Args:
        training: The pool.
        sets: Evaluation sets by name.
        cache: Hashes that are known already.
        max_distance: Bits of 256 in which the hashes of one picture may differ.
    """
    started = time.monotonic()
    pictures = _Pictures()
    finder = _Finder(pictures, _hash_evaluation(sets, pictures, cache), max_distance)
    sources = _distinct(training)
    keys = list(sources)
    chunks = [keys[start : start + BLOCK] for start in range(0, len(keys), BLOCK)]
    for chunk in track(chunks, description="comparing pictures"):
        hashed = hash_pictures([sources[key] for key in chunk], cache, mirrored=False)
        finder.add(chunk, list(hashed))
    everything = [*training, *(e for examples in sets.values() for e in examples)]
    tally = _Tally(sets, pictures, finder)
    for example in training:
        tally.add(example)
    return Overlap(
        sets=tuple(tally.of_set(name, examples) for name, examples in sets.items()),
        matches=tuple(finder.matches),
        training_rows=frozenset(tally.training_rows),
        num_training_rows=len(training),
        num_training_pictures=len(sources),
        num_blank=pictures.num_blank,
        unreadable=tuple(_named(pictures.unreadable, everything)),
        max_distance=max_distance,
        seconds=time.monotonic() - started,
    )


def _keys(example: Example) -> list[Key]:
    pairs = zip(example.images, example.image_ids, strict=True)
    return [(image.name, image_id) for image, image_id in pairs]


def _named(unreadable: Mapping[Key, str], examples: Sequence[Example]) -> list[str]:
    """Return each error with the first row that shows the picture."""
    rows: dict[Key, str] = {}
    for example in examples if unreadable else ():
        for key in unreadable.keys() & set(_keys(example)):
            rows.setdefault(key, f"{example.source}/{example.id}")
    return [f"{rows[key]}: {error}" for key, error in unreadable.items()]


def _distinct(examples: Sequence[Example]) -> dict[Key, ImageSource]:
    return {
        key: image
        for example in examples
        for key, image in zip(_keys(example), example.images, strict=True)
    }


def _hash_evaluation(
    sets: Mapping[str, Sequence[Example]], pictures: _Pictures, cache: HashCache
) -> "tuple[list[int], NDArray[np.uint64]]":
    """Return the evaluation pictures that have a hash: their indices, and all hashes of each."""
    import numpy as np

    sources = _distinct([example for examples in sets.values() for example in examples])
    owners, hashes = [], []
    results = hash_pictures(list(sources.values()), cache, mirrored=True)
    for key, result in zip(sources, results, strict=True):
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


class _Finder:
    """Takes training pictures block by block and keeps those that are evaluation pictures."""

    def __init__(
        self,
        pictures: _Pictures,
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
        self.found: dict[Key, set[int]] = {}
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
                self._found(key, index, picture.name, None, mirrored=False)
        hashed = [n for n, p in enumerate(block) if p.hashes]
        if not hashed or not self.owners:
            return
        hashes = np.concatenate([hash_words(block[n].hashes) for n in hashed])
        for (position, index), (distance, mirrored) in self._near(hashes).items():
            key, picture = keys[hashed[position]], block[hashed[position]]
            if index not in self.found.get(key, ()):
                self._found(key, index, picture.name, distance, mirrored=mirrored)

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

    def _found(
        self, key: Key, index: int, name: str, distance: int | None, *, mirrored: bool
    ) -> None:
        self.found.setdefault(key, set()).add(index)
        if not mirrored:
            self.upright.add(index)
        self.matches.append(Match(self.pictures.names[index], name, distance, mirrored))


class _Tally:
    """Counts rows; the training pool passes by once, only evaluation rows are kept."""

    def __init__(
        self, sets: Mapping[str, Sequence[Example]], pictures: _Pictures, finder: _Finder
    ) -> None:
        self.pictures, self.finder = pictures, finder
        self.shared = {index for found in finder.found.values() for index in found}
        self.training_rows: set[str] = set()
        self.repeats: set[Item] = set()
        self.items: set[tuple[Item, int]] = set()
        self._asked: dict[Item, set[int]] = defaultdict(set)
        for examples in sets.values():
            for example in examples:
                for item in _items(example):
                    self._asked[item] |= self._indices(example)

    def _indices(self, example: Example) -> set[int]:
        known = self.pictures.index_of
        return {known[key] for key in _keys(example) if key in known}

    def add(self, example: Example) -> None:
        """Count one training row."""
        shown = set().union(*(self.finder.found.get(key, ()) for key in _keys(example)))
        if shown:
            self.training_rows.add(example.id)
        for item in _items(example):
            if item in self._asked:
                self.repeats.add(item)
                self.items |= {(item, index) for index in shown & self._asked[item]}

    def of_set(self, name: str, examples: Sequence[Example]) -> SetOverlap:
        """Return the counts of one evaluation set."""
        indices = set().union(*map(self._indices, examples))
        alike = indices & self.shared - self.finder.same_file
        num_items = num_repeats = num_on_shared = 0
        for example in examples:
            items, own = _items(example), self._indices(example)
            num_on_shared += bool(own & self.shared)
            if any((item, index) in self.items for item in items for index in own):
                num_items += 1
            elif any(item in self.repeats for item in items):
                num_repeats += 1
        return SetOverlap(
            name=name,
            num_pictures=len(indices),
            num_questions=len(examples),
            num_same_file=len(indices & self.finder.same_file),
            num_alike=len(alike),
            num_mirrored=len(alike - self.finder.upright),
            num_questions_on_shared=num_on_shared,
            num_items=num_items,
            num_text_repeats=num_repeats,
        )


def _items(example: Example) -> list[Item]:
    """Return the question with each of its answers, as exact match would compare them."""
    question = normalize(example.question, Normalizer.squad)
    return [(question, normalize(answer, Normalizer.squad)) for answer in example.answers]
