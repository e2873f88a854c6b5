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
        detectable: True difference found with 80 % power at the first step of Holm's procedure.
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
    family_size: int = 1
    p_holm: float = 1.0
    permutation_p_holm: float = 1.0
    detectable: float = 0.0

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
    keys = (*MODEL_KEYS, *settings.within)
    return [
        (b, a) if a.name == baseline else (a, b)
        for a, b in combinations(arms, 2)
        if all(subtree(a.config, key) == subtree(b.config, key) for key in keys)
        and (baseline is None or baseline in (a.name, b.name))
    ]


def compare_on(
    set_name: str, pairs: Sequence[tuple[Arm, Arm]], settings: Settings
) -> Iterator[Comparison]:
    """Yield the comparisons on one set, family by family.

    Raises:
        UserError: If a pair may not be compared and the user did not insist.
    """
    reasons = {}
    for a, b in pairs:
        if all(run.answered("final", set_name) for run in (*a.runs, *b.runs)):
            reasons[a.name, b.name] = unequal(a, b, set_name)
            if reasons[a.name, b.name] and not settings.allow_unequal:
                raise UserError(
                    f"{a.name} and {b.name} cannot be compared on {set_name}: "
                    f"{'; '.join(reasons[a.name, b.name])}\n"
                    "  --within KEY compares only arms that agree in a config key, "
                    "--allow-unequal marks such pairs in every table"
                )
    for group in GROUPS:
        for metric in SHOWN:
            tested = (
                _tested(a, b, (set_name, group, metric), reasons[a.name, b.name], settings)
                for a, b in pairs
                if (a.name, b.name) in reasons
            )
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
            detectable=detectable_difference(
                c.crossed.standard_error,
                c.crossed.degrees_of_freedom,
                power=POWER,
                alpha=LEVEL / len(family),
            ),
        )
        for c, p_holm, permutation_p_holm in zip(family, adjusted, of_models, strict=True)
    ]


def _tested(
    a: Arm, b: Arm, place: tuple[str, str, str], unequal: tuple[str, ...], settings: Settings
) -> Comparison | None:
    """Return the pair's tests; None where one picture shows no spread."""
    set_name, group, metric = place
    answers = [
        [found for run in arm.runs if (found := run.answered("final", set_name))] for arm in (a, b)
    ]
    (of_a, of_b), clusters = aligned(answers, group=group, metric=metric)
    if len(set(clusters)) < 2:
        return None
    means = of_a.mean(axis=0).tolist(), of_b.mean(axis=0).tolist()
    by_seed = [
        {run.seed: row.tolist() for run, row in zip(arm.runs, scores, strict=True)}
        for arm, scores in ((a, of_a), (b, of_b))
    ]
    both = [seed for seed in by_seed[0] if seed in by_seed[1]] if metric in BINARY else []
    return Comparison(
        a=a,
        b=b,
        set_name=set_name,
        group=group,
        metric=metric,
        crossed=compare_arms(of_a, of_b, clusters, seeds_are_paired=settings.seeds_are_paired),
        effect=paired_effect(*means),
        permutation=paired_permutation(
            *means, clusters, num_samples=settings.num_samples, seed=settings.seed
        ),
        mcnemar=tuple(mcnemar(by_seed[0][seed], by_seed[1][seed]) for seed in both),
        unequal=unequal,
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
