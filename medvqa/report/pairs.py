"""Pairs of arms -> tests, effects and detectable differences, one family at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
from medvqa.report.runs import GROUPS, Answers, Question, Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BINARY = ("exact_match", "numeric_exact_match", "closed_accuracy")
LEVEL = 0.05
POWER = 0.8
LARGEST_DETECTABLE = 0.5  # a study that sees only more than this sees nothing of use


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to compare.

    Attributes:
        within: Compare only arms that agree in these config keys.
        baseline: Compare every arm with this one only; all pairs if None.
        allow_unequal: Mark unfair pairs instead of refusing them.
        seeds_are_paired: See `compare_arms`.
        num_samples: Sign flips of the permutation test.
    """

    within: tuple[str, ...] = ()
    baseline: str | None = None
    allow_unequal: bool = False
    seeds_are_paired: bool = False
    num_samples: int = 2000
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Arm `a` minus arm `b` in the final phase, on the questions that both answer.

    Attributes:
        crossed: The test to quote: over new questions and, with several seeds, new trainings.
        permutation: Of these very models (means over their seeds) on new pictures.
        mcnemar: Of right-or-wrong metrics, one per seed that both arms have.
        unequal: Why the two are no fair pair; empty unless the user insisted.
        family_size: Pairs of the same set, group and metric: corrected together.
        detectable: True difference found with 80 % power at the first step of Holm's procedure;
            None where that would be more than 50 points.
        seeds: Of the runs of a and of b that are compared.
        left_out: Runs without a partner, where arms are paired by seed.
        are_identical: Whether both arms have the same scores, so that there is nothing to test.
        means: Of a and of b, on the questions that both answer.
    """

    a: Arm
    b: Arm
    set_name: str
    group: str
    metric: str
    crossed: ArmComparison
    effect: PairedEffect
    permutation: PermutationTest
    mcnemar: tuple[McNemarTest, ...]
    unequal: tuple[str, ...]
    seeds: tuple[tuple[int, ...], tuple[int, ...]]
    left_out: tuple[str, ...]
    are_identical: bool
    means: tuple[float, float]
    family_size: int = 1
    p_holm: float = 1.0
    permutation_p_holm: float = 1.0
    detectable: float | None = None

    @property
    def common_row(self) -> str:
        """The grid's row that both arms stand in; "" where they differ in more than ordering."""
        return self.a.row if self.a.row == self.b.row else ""

    @property
    def label(self) -> str:
        """`a - b`, with short names where both share a row."""
        arms = (self.a, self.b)
        return " \N{MINUS SIGN} ".join(x.ordering if self.common_row else x.name for x in arms)


def arm_pairs(arms: Sequence[Arm], settings: Settings) -> list[tuple[Arm, Arm]]:
    """Return the pairs of one model, and of one value of each `within` key.

    Raises:
        UserError: If the baseline is no arm.
    """
    names, baseline = [arm.name for arm in arms], settings.baseline
    if baseline is not None and baseline not in names:
        raise UserError(f"--baseline {baseline!r} is no arm; the arms are: {'; '.join(names)}")
    return [
        (b, a) if a.name == baseline else (a, b)
        for a, b in combinations([arm for arm in arms if arm.runs], 2)
        if block_of(a, settings) == block_of(b, settings)
        and (baseline is None or baseline in (a.name, b.name))
    ]


def block_of(arm: Arm, settings: Settings) -> tuple[str, ...]:
    """Return what must be equal in two arms that are compared or pooled."""
    return tuple(subtree(arm.config, key) for key in (*MODEL_KEYS, *settings.within))


def compare_on(
    set_name: str, pairs: Sequence[tuple[Arm, Arm]], arms: Sequence[Arm], settings: Settings
) -> Iterator[Comparison]:
    """Yield the comparisons on one set, family by family.

    Raises:
        UserError: If a pair may not be compared and the user did not insist.
    """
    answering = [
        arm for arm in arms if arm.runs and all(run.answered("final", set_name) for run in arm.runs)
    ]
    fair: list[tuple[Arm, Arm, tuple[str, ...]]] = []
    for a, b in pairs:
        if a in answering and b in answering:
            reasons = unequal(a, b, set_name)
            if reasons and not settings.allow_unequal:
                raise UserError(
                    f"{a.name} and {b.name} cannot be compared on {set_name}: "
                    f"{'; '.join(reasons)}\n"
                    "  --within KEY compares only arms that agree in a config key, "
                    "--allow-unequal marks such pairs in every table"
                )
            fair.append((a, b, reasons))
    for group in GROUPS:
        for metric in SHOWN:
            place = (set_name, group, metric)
            tested = (_tested(pair, answering, place, settings) for pair in fair)
            yield from corrected([comparison for comparison in tested if comparison])


def corrected(family: Sequence[Comparison]) -> list[Comparison]:
    """Return the comparisons with what depends on the size of their family."""
    if not family:
        return []
    adjusted = holm([c.crossed.p_value for c in family])
    of_models = holm([c.permutation.p_value for c in family])
    return [
        replace(
            c,
            family_size=len(family),
            p_holm=p_holm,
            permutation_p_holm=permutation_p_holm,
            detectable=_detectable(c, LEVEL / len(family)),
        )
        for c, p_holm, permutation_p_holm in zip(family, adjusted, of_models, strict=True)
    ]


def _detectable(c: Comparison, alpha: float) -> float | None:
    difference = detectable_difference(c.crossed.components, power=POWER, alpha=alpha)
    return difference if difference <= LARGEST_DETECTABLE else None


def compared_runs(a: Arm, b: Arm, *, paired: bool) -> tuple[list[Run], list[Run]]:
    """Return the runs to compare: with paired seeds, those whose seed both arms have.

    Raises:
        UserError: If paired arms share no seed.
    """
    if not paired:
        return list(a.runs), list(b.runs)
    shared = {run.seed for run in a.runs} & {run.seed for run in b.runs}
    if not shared:
        raise UserError(
            f"{a.name} and {b.name} share no seed, so they cannot be paired by seed; "
            "leave --paired-seeds out"
        )
    runs_a, runs_b = ([run for run in arm.runs if run.seed in shared] for arm in (a, b))
    return runs_a, runs_b


def _tested(
    pair: tuple[Arm, Arm, tuple[str, ...]],
    arms: Sequence[Arm],
    place: tuple[str, str, str],
    settings: Settings,
) -> Comparison | None:
    """Return the pair's tests; None where one picture shows no spread."""
    a, b, reasons = pair
    set_name, group, metric = place
    runs = compared_runs(a, b, paired=settings.seeds_are_paired)
    answers = [[found for run in one if (found := run.answered("final", set_name))] for one in runs]
    (of_a, of_b), questions = aligned(answers, group=group, metric=metric)
    clusters = [question.cluster for question in questions]
    if len(set(clusters)) < 2:
        return None
    pool = _pool(a, b, [run.seed for run in runs[0]], arms, settings)
    means_of_pool = (_run_means(of_arm, set_name, questions, metric) for of_arm in pool)
    others = [means for means in means_of_pool if means]
    means = of_a.mean(axis=0).tolist(), of_b.mean(axis=0).tolist()
    by_seed = [
        {run.seed: row.tolist() for run, row in zip(of_arm, scores, strict=True)}
        for of_arm, scores in zip(runs, (of_a, of_b), strict=True)
    ]
    both = [seed for seed in by_seed[0] if seed in by_seed[1]] if metric in BINARY else []
    return Comparison(
        a=a,
        b=b,
        set_name=set_name,
        group=group,
        metric=metric,
        crossed=compare_arms(
            of_a,
            of_b,
            clusters,
            seeds_are_paired=settings.seeds_are_paired,
            others=others,
        ),
        effect=paired_effect(*means),
        permutation=paired_permutation(
            *means, clusters, num_samples=settings.num_samples, seed=settings.seed
        ),
        mcnemar=tuple(mcnemar(by_seed[0][seed], by_seed[1][seed]) for seed in both),
        unequal=reasons,
        seeds=(tuple(by_seed[0]), tuple(by_seed[1])),
        left_out=tuple(
            f"seed {run.seed} of {arm.name}"
            for arm, of_arm in zip((a, b), runs, strict=True)
            for run in arm.runs
            if run not in of_arm
        ),
        means=(float(of_a.mean()), float(of_b.mean())),
        are_identical=of_a.shape == of_b.shape and bool((of_a == of_b).all()),
    )


def _pool(
    a: Arm, b: Arm, seeds: Sequence[int], arms: Sequence[Arm], settings: Settings
) -> list[list[Run]]:
    """Return the runs of the other arms that tell how much seeds vary.

    They agree with the pair in model and `within` keys, and asked the same questions as it.
    """
    pool = []
    for arm in arms:
        if arm in (a, b) or block_of(arm, settings) != block_of(a, settings):
            continue
        by_seed = {run.seed: run for run in arm.runs}
        if not settings.seeds_are_paired:
            pool.append(list(arm.runs))
        elif all(seed in by_seed for seed in seeds):
            pool.append([by_seed[seed] for seed in seeds])
    return pool


def _run_means(
    runs: Sequence[Run], set_name: str, questions: Sequence[Question], metric: str
) -> list[float]:
    """Return each run's mean; empty where a run was not asked or scored alike."""
    means = []
    for run in runs:
        answers = run.answered("final", set_name)
        if answers is None or any(question.id not in answers.rows for question in questions):
            return []
        means.append(float(_scores(answers, questions, metric).mean()))
    return means if all(mean == mean for mean in means) else []


def aligned(
    arms: Sequence[Sequence[Answers]], *, group: str, metric: str
) -> "tuple[list[NDArray[np.float64]], list[Question]]":
    """Return each arm's scores as (runs, questions), and the questions.

    Questions are those that every run answers and that the metric applies to.
    """
    import numpy as np

    every = [answers for arm in arms for answers in arm]
    asked = [
        question
        for question in every[0].questions
        if group in ("overall", question.answer_type)
        and all(question.id in answers.rows for answers in every)
    ]
    columns = np.array([_scores(answers, asked, metric) for answers in every])
    applies = np.isfinite(columns).all(axis=0)
    parts, start = [], 0
    for arm in arms:
        parts.append(columns[start : start + len(arm)][:, applies])
        start += len(arm)
    return parts, [question for question, kept in zip(asked, applies, strict=True) if kept]


def _scores(answers: Answers, questions: Sequence[Question], metric: str) -> "NDArray[np.float64]":
    rows = [answers.rows[question.id] for question in questions]
    return answers.scores[metric][rows] if rows else answers.scores[metric][:0]
