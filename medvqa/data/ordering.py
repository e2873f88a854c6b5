"""Examples -> a stage's pool and order: `FILTERS`, `ORDERS` and `MERGES`; pure and seeded."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from medvqa.config.curriculum import Filter, Merge, Order
from medvqa.config.errors import UserError
from medvqa.data.example import Example


def shuffled(pool: Sequence[Example], size: int, generator: random.Random) -> list[Example]:
    """Draw pass after pass, each pass in a new random order."""
    return _passes(pool, size, generator.shuffle)


def in_dataset_order(pool: Sequence[Example], size: int, generator: random.Random) -> list[Example]:
    """Draw pass after pass, each pass in the order of the data set."""
    return _passes(pool, size, lambda _: None)


def graded(
    pool: Sequence[Example], size: int, generator: random.Random, *, hardest_first: bool = False
) -> list[Example]:
    """Draw as `shuffled` does and sort each pass, easiest or hardest first.

    The last, partial pass is cut before it is sorted. So this order consumes the same mix of easy
    and hard examples as a shuffled stage.
    """
    return _sort_passes(shuffled(pool, size, generator), hardest_first=hardest_first)


def _passes(
    pool: Sequence[Example], size: int, rearrange: Callable[[list[Example]], None]
) -> list[Example]:
    """Return `size` examples pass by pass: none comes again before all have come."""
    drawn: list[Example] = []
    while len(drawn) < size:
        once = list(pool)
        rearrange(once)
        drawn += once[: size - len(drawn)]
    return drawn


def _sort_passes(drawn: Sequence[Example], *, hardest_first: bool) -> list[Example]:
    """Sort each pass; ties keep the order of the first pass, so passes agree."""
    rank: dict[str, int] = {}
    seen: Counter[str] = Counter()
    keys = []
    sign = -1 if hardest_first else 1
    measures = difficulties(drawn)
    for position, (example, measure) in enumerate(zip(drawn, measures, strict=True)):
        rank.setdefault(example.id, position)
        keys.append((seen[example.id], *(sign * part for part in measure), rank[example.id]))
        seen[example.id] += 1
    return [drawn[i] for i in sorted(range(len(drawn)), key=keys.__getitem__)]


def difficulties(examples: Sequence[Example]) -> list[tuple[float, ...]]:
    """Return each example's difficulty as the data set states it (`data.difficulty`).

    A set that states none is measured by words of the answer, then of the question: shorter is
    easier. Source of the idea: Bengio et al., Curriculum Learning, ICML 2009; the measure is ours.

    Raises:
        UserError: If only some examples state a difficulty.
    """
    stated = {example.id: example.difficulty is not None for example in examples}
    if not any(stated.values()):
        return [(len(e.answers[0].split()), len(e.question.split())) for e in examples]
    if not all(stated.values()):
        raise UserError(
            f"{sum(stated.values()):,} of {len(stated):,} examples state a difficulty, so "
            "they cannot be sorted by it; give data.difficulty= for every part, or choose "
            "another curriculum"
        )
    return [(example.difficulty or 0.0,) for example in examples]


def by_sources(pool: Sequence[Example], size: int, generator: random.Random) -> list[Example]:
    """Draw as `shuffled` does and spread each data set evenly over each pass."""
    drawn = shuffled(pool, size, generator)
    passes = [drawn[start : start + len(pool)] for start in range(0, size, len(pool))]
    return [example for once in passes for example in interleaved(_by_source(once), generator)]


def _by_source(examples: Sequence[Example]) -> list[list[Example]]:
    sources: dict[str, list[Example]] = {}
    for example in examples:
        sources.setdefault(example.source, []).append(example)
    return [sources[name] for name in sorted(sources)]


def in_sequence(stages: Sequence[list[Example]], generator: random.Random) -> None:
    """Keep the stages apart, one after the other."""


def merged_shuffled(stages: Sequence[list[Example]], generator: random.Random) -> list[Example]:
    """Join the stages and shuffle."""
    joined = [example for stage in stages for example in stage]
    generator.shuffle(joined)
    return joined


def interleaved(stages: Sequence[list[Example]], generator: random.Random) -> list[Example]:
    """Alternate between the stages, each spread evenly over the whole; ties go by stage."""
    positions = [
        ((i + 0.5) / len(stage), number, example)
        for number, stage in enumerate(stages)
        for i, example in enumerate(stage)
    ]
    return [example for *_, example in sorted(positions, key=lambda position: position[:2])]


def merged_graded(
    stages: Sequence[list[Example]], generator: random.Random, *, hardest_first: bool = False
) -> list[Example]:
    """Join the stages, shuffle, and sort each pass, easiest or hardest first."""
    return _sort_passes(merged_shuffled(stages, generator), hardest_first=hardest_first)


def _of_type(answer_type: str, examples: Sequence[Example]) -> list[Example]:
    return [example for example in examples if example.answer_type == answer_type]


def _third(number: int, examples: Sequence[Example]) -> list[Example]:
    """Return one third of the pool by difficulty; ties go by id."""
    keys = [
        (*measure, example.id)
        for measure, example in zip(difficulties(examples), examples, strict=True)
    ]
    by_key = [examples[i] for i in sorted(range(len(examples)), key=keys.__getitem__)]
    return by_key[number * len(by_key) // 3 : (number + 1) * len(by_key) // 3]


# Which examples of the training pool a stage may draw from.
FILTERS: dict[Filter, Callable[[Sequence[Example]], list[Example]]] = {
    Filter.all: list,
    Filter.open: partial(_of_type, "open"),
    Filter.closed: partial(_of_type, "closed"),
    Filter.easy: partial(_third, 0),
    Filter.medium: partial(_third, 1),
    Filter.hard: partial(_third, 2),
}
# How a stage draws from its pool so many examples, each pass in some order.
ORDERS: dict[Order, Callable[[Sequence[Example], int, random.Random], list[Example]]] = {
    Order.shuffle: shuffled,
    Order.dataset: in_dataset_order,
    Order.easy_first: graded,
    Order.hard_first: partial(graded, hardest_first=True),
    Order.interleave_sources: by_sources,
}
# How the stages' examples become those of one stage; None keeps the stages apart.
MERGES: dict[Merge, Callable[[Sequence[list[Example]], random.Random], list[Example] | None]] = {
    Merge.sequence: in_sequence,
    Merge.shuffle: merged_shuffled,
    Merge.interleave: interleaved,
    Merge.easy_first: merged_graded,
    Merge.hard_first: partial(merged_graded, hardest_first=True),
}
