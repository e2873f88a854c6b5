"""Which evaluation pictures and questions occur in the training pool."""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medvqa.config.evaluation import Normalizer
from medvqa.contamination.image_matches import (
    Key,
    Match,
    PictureMatches,
    distinct_pictures,
    keys_of,
)
from medvqa.data.example import Example
from medvqa.data.storage.cache import Cache
from medvqa.evaluation.normalize import normalize


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


Item = tuple[str, str]  # normalised question and answer


def find_overlap(
    training: Sequence[Example],
    sets: Mapping[str, Sequence[Example]],
    cache: Cache,
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
    rows = [row for examples in sets.values() for row in examples]
    matches = PictureMatches(distinct_pictures(rows), cache, max_distance=max_distance)
    sources = distinct_pictures(training)
    matches.compare(sources)
    tally = _Tally(sets, matches)
    for example in training:
        tally.add(example)
    return Overlap(
        sets=tuple(tally.of_set(name, examples) for name, examples in sets.items()),
        matches=tuple(matches.matches),
        training_rows=frozenset(tally.training_rows),
        num_training_rows=len(training),
        num_training_pictures=len(sources),
        num_blank=matches.num_blank,
        unreadable=tuple(_named(matches.unreadable, [*training, *rows])),
        max_distance=max_distance,
        seconds=time.monotonic() - started,
    )


def _named(unreadable: Mapping[Key, str], examples: Sequence[Example]) -> list[str]:
    """Return each error with the first row that shows the picture."""
    rows: dict[Key, str] = {}
    for example in examples if unreadable else ():
        for key in unreadable.keys() & set(keys_of(example)):
            rows.setdefault(key, f"{example.source}/{example.id}")
    return [f"{rows[key]}: {error}" for key, error in unreadable.items()]


class _Tally:
    """Counts rows. Only evaluation rows are kept in memory; the training pool is read once."""

    def __init__(self, sets: Mapping[str, Sequence[Example]], matches: PictureMatches) -> None:
        self.matches = matches
        self.shared = set().union(*matches.indices_by_key.values())
        self.training_rows: set[str] = set()
        self.repeats: set[Item] = set()
        self.items: set[tuple[Item, int]] = set()
        self._asked: dict[Item, set[int]] = defaultdict(set)
        for examples in sets.values():
            for example in examples:
                for item in _items(example):
                    self._asked[item] |= self._indices(example)

    def _indices(self, example: Example) -> set[int]:
        known = self.matches.index_of
        return {known[key] for key in keys_of(example) if key in known}

    def add(self, example: Example) -> None:
        """Count one training row."""
        indices = set().union(
            *(self.matches.indices_by_key.get(key, ()) for key in keys_of(example))
        )
        if indices:
            self.training_rows.add(example.id)
        for item in _items(example):
            if item in self._asked:
                self.repeats.add(item)
                self.items |= {(item, index) for index in indices & self._asked[item]}

    def of_set(self, name: str, examples: Sequence[Example]) -> SetOverlap:
        """Return the counts of one evaluation set."""
        indices = set().union(*map(self._indices, examples))
        alike = indices & self.shared - self.matches.same_file
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
            num_same_file=len(indices & self.matches.same_file),
            num_alike=len(alike),
            num_mirrored=len(alike - self.matches.upright),
            num_questions_on_shared=num_on_shared,
            num_items=num_items,
            num_text_repeats=num_repeats,
        )


def _items(example: Example) -> list[Item]:
    """Return the question with each of its answers, as exact match would compare them."""
    question = normalize(example.question, Normalizer.squad)
    return [(question, normalize(answer, Normalizer.squad)) for answer in example.answers]
