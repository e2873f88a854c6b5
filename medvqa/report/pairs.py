"""Pairs of arms -> tests, effects and what they could have shown, a family at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from medvqa.config.errors import UserError
from medvqa.evaluation.comparison import ArmComparison, compare_arms
from medvqa.evaluation.power import detectable_difference
from medvqa.evaluation.score import SHOWN
from medvqa.evaluation.statistics import (
    McNemarTest,
    PairedEffect,
    PermutationTest,
    holm,
    mcnemar,
    paired_effect,
    paired_permutation,
)
from medvqa.report.arms import MODEL_KEYS, Arm, subtree
from medvqa.report.protocol import unequal
from medvqa.report.runs import Answers, Question

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GROUPS = ("overall", "open", "closed")
BINARY = ("exact_match", "numeric_exact_match", "closed_accuracy")
LEVEL = 0.05
POWER = 0.8


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to compare.

    Attributes:
        within: Compare only arms that agree in these config keys.
        baseline: Compare every arm with this one only; all pairs if None.
        allow_unequal: Mark unfair pairs in place of refusing.
        seeds_are_paired: See `compare_arms`.
        num_samples: Bootstrap resamples and sign flips.
    """

    within: tuple[str, ...] = ()
    baseline: str | None = None
    allow_unequal: bool = False
    seeds_are_paired: bool = False
    num_samples: int = 2000
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Tests:
    """What is known of one pair by itself; see `Comparison`."""

    crossed: ArmComparison
    effect: PairedEffect
    permutation: PermutationTest
    mcnemar: tuple[McNemarTest, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Arm `a` minus arm `b` in the final phase, on the questions that both answer.

    Attributes:
        tests: `crossed` is the one to quote: over new questions and, with several seeds, new
            trainings. `permutation` is of these very models (means over their seeds) on new
            pictures; `mcnemar`, for right-or-wrong metrics, one a seed that both arms have.
        unequal: Why the two are no fair pair; empty unless the user insisted.
        family_size: Pairs of the same set, group and metric: corrected together.
        detectable: True difference found with 80 % power at the first step of Holm's procedure.
    """

    a: Arm
    b: Arm
    set_name: str
    group: str
    metric: str
    tests: Tests
    unequal: tuple[str, ...]
    family_size: int
    p_holm: float
    permutation_p_holm: float
    detectable: float

    @property
    def common_row(self) -> str:
        """The grid's row that both arms stand in; "" where they differ in more than ordering."""
        return self.a.row if self.a.row == self.b.row else ""

    @property
    def names(self) -> tuple[str, str]:
        """Names of both, short where they share a row."""
        if self.common_row:
            return self.a.ordering, self.b.ordering
        return self.a.name, self.b.name


def arm_pairs(arms: Sequence[Arm], settings: Settings) -> list[tuple[Arm, Arm]]:
    """Return the pairs of one model, and of one value of each `within` key.

    Raises:
        UserError: If the baseline is no arm.
    """
    names, baseline = [arm.name for arm in arms], settings.baseline
    if baseline is not None and baseline not in names:
        raise UserError(f"--baseline {baseline!r} is no arm; the arms are: {'; '.join(names)}")
    keys = (*MODEL_KEYS, *settings.within)
    return [
        (b, a) if a.name == baseline else (a, b)
        for a, b in combinations(arms, 2)
        if all(subtree(a.config, key) == subtree(b.config, key) for key in keys)
        and (baseline is None or baseline in (a.name, b.name))
    ]


@dataclass(frozen=True)
class Pair:
    """Two arms that both answered a set; `unequal` as in `Comparison`."""

    a: Arm
    b: Arm
    unequal: tuple[str, ...]


def answering_pairs(
    set_name: str, pairs: Sequence[tuple[Arm, Arm]], *, allow_unequal: bool
) -> list[Pair]:
    """Return the pairs of which every run has final answers on the set.

    Raises:
        UserError: If a pair may not be compared and the user did not insist.
    """
    found = []
    for a, b in pairs:
        if all(run.answered("final", set_name) for run in (*a.runs, *b.runs)):
            reasons = unequal(a, b, set_name)
            if reasons and not allow_unequal:
                raise UserError(refusal(a, b, set_name, reasons))
            found.append(Pair(a, b, reasons))
    return found


def refusal(a: Arm, b: Arm, set_name: str, reasons: Sequence[str]) -> str:
    """Return why two arms are not compared, and what to do about it."""
    return (
        f"{a.name} and {b.name} cannot be compared on {set_name}: {'; '.join(reasons)}\n"
        "  --within KEY compares only arms that agree in a config key, --allow-unequal marks such "
        "pairs in every table"
    )


def compare_on(
    set_name: str, pairs: Sequence[tuple[Arm, Arm]], settings: Settings
) -> Iterator[Comparison]:
    """Yield the comparisons on one set, family by family; see `answering_pairs`."""
    fair = answering_pairs(set_name, pairs, allow_unequal=settings.allow_unequal)
    for group in GROUPS:
        for metric in SHOWN:
            yield from _family(fair, set_name, group, metric, settings)


def _family(
    pairs: Sequence[Pair], set_name: str, group: str, metric: str, settings: Settings
) -> Iterator[Comparison]:
    """Yield all pairs of one set, group and metric, their p-values corrected together."""
    tested = []
    for pair in pairs:
        answered = [
            [found for run in arm.runs if (found := run.answered("final", set_name))]
            for arm in (pair.a, pair.b)
        ]
        (of_a, of_b), clusters = aligned(answered, group=group, metric=metric)
        if len(set(clusters)) > 1:  # one picture shows no spread
            tested.append((pair, _tests(pair, of_a, of_b, clusters, metric, settings)))
    if not tested:
        return
    corrected = holm([tests.crossed.p_value for _, tests in tested])
    of_models = holm([tests.permutation.p_value for _, tests in tested])
    for (pair, tests), p_holm, permutation_p_holm in zip(tested, corrected, of_models, strict=True):
        yield Comparison(
            a=pair.a,
            b=pair.b,
            set_name=set_name,
            group=group,
            metric=metric,
            tests=tests,
            unequal=pair.unequal,
            family_size=len(tested),
            p_holm=p_holm,
            permutation_p_holm=permutation_p_holm,
            detectable=detectable_difference(
                tests.crossed.standard_error,
                tests.crossed.degrees_of_freedom,
                power=POWER,
                alpha=LEVEL / len(tested),
            ),
        )


def _tests(
    pair: Pair,
    of_a: "NDArray[np.float64]",
    of_b: "NDArray[np.float64]",
    clusters: Sequence[str],
    metric: str,
    settings: Settings,
) -> Tests:
    num_samples, seed = settings.num_samples, settings.seed
    mean_a, mean_b = of_a.mean(axis=0).tolist(), of_b.mean(axis=0).tolist()
    by_seed_a, by_seed_b = (
        {run.seed: row for run, row in zip(arm.runs, scores, strict=True)}
        for arm, scores in ((pair.a, of_a), (pair.b, of_b))
    )
    both = [s for s in by_seed_a if s in by_seed_b] if metric in BINARY else []
    return Tests(
        crossed=compare_arms(
            of_a,
            of_b,
            clusters,
            seeds_are_paired=settings.seeds_are_paired,
            num_samples=num_samples,
            seed=seed,
        ),
        effect=paired_effect(mean_a, mean_b, clusters, num_samples=num_samples, seed=seed),
        permutation=paired_permutation(
            mean_a, mean_b, clusters, num_samples=num_samples, seed=seed
        ),
        mcnemar=tuple(mcnemar(by_seed_a[s].tolist(), by_seed_b[s].tolist()) for s in both),
    )


def aligned(
    arms: Sequence[Sequence[Answers]], *, group: str, metric: str
) -> "tuple[list[NDArray[np.float64]], list[str]]":
    """Return each arm's scores as (runs, questions), and the picture of each question.

    Questions are those that every run answers and that the metric applies to.
    """
    import numpy as np

    every = [answers for arm in arms for answers in arm]
    rows = [{q.id: i for i, q in enumerate(answers.questions)} for answers in every]
    asked: list[Question] = [
        question
        for question in every[0].questions
        if all(question.id in row for row in rows) and group in ("overall", question.answer_type)
    ]
    columns = np.array(
        [
            answers.scores[metric][[row[q.id] for q in asked]] if asked else []
            for answers, row in zip(every, rows, strict=True)
        ]
    )
    applies = np.isfinite(columns).all(axis=0)
    clusters = [q.cluster for q, kept in zip(asked, applies, strict=True) if kept]
    parts, start = [], 0
    for arm in arms:
        parts.append(columns[start : start + len(arm)][:, applies])
        start += len(arm)
    return parts, clusters
