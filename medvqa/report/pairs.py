"""Pairs of arms -> tests, effects and detectable differences, one family at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from medvqa.config.errors import UserError
from medvqa.evaluation.comparison import LEVEL, ArmComparison, compare_arms
from medvqa.evaluation.power import detectable_difference
from medvqa.evaluation.score import GROUPS, SHOWN
from medvqa.evaluation.statistics import (
    McNemarTest,
    PairedEffect,
    PermutationTest,
    holm,
    mcnemar,
    paired_effect,
    paired_permutation,
)
from medvqa.report.arms import Arm
from medvqa.report.matching import (
    Settings,
    aligned,
    compared_runs,
    left_out,
    pool_of,
    run_means,
)
from medvqa.report.protocol import unequal
from medvqa.report.runs import OVERCONFIDENCE
from medvqa.tracking.progress import track

BINARY = ("exact_match", "numeric_exact_match", "closed_accuracy")
POWER = 0.8
LARGEST_DETECTABLE = 0.5  # a study that sees only more than this sees nothing of use


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
    def is_with_untrained(self) -> bool:
        """Whether one of the two runs only evaluates, so that it has no training seed."""
        return any(arm.config.get("only_evaluate") for arm in (self.a, self.b))

    @property
    def label(self) -> str:
        """`a - b`, with short names where both share a row."""
        arms = (self.a, self.b)
        return " \N{MINUS SIGN} ".join(x.ordering if self.common_row else x.name for x in arms)


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
    fair = [
        (a, b, _reasons(a, b, set_name, settings))
        for a, b in pairs
        if a in answering and b in answering
    ]
    places = [(set_name, group, metric) for group in GROUPS for metric in SHOWN] if fair else []
    for place in track(places, description=f"comparing arms on {set_name}"):
        tested = (_tested(pair, answering, place, settings) for pair in fair)
        yield from corrected([comparison for comparison in tested if comparison])


def overconfidence(comparisons: Sequence[Comparison], settings: Settings) -> list[Comparison]:
    """Return the compared pairs' differences in overconfidence, one family per set."""
    families: dict[str, list[Comparison]] = {}
    for c in comparisons:
        if (c.group, c.metric) == ("overall", "exact_match"):
            place = (c.set_name, "overall", OVERCONFIDENCE)
            if tested := _tested((c.a, c.b, c.unequal), (), place, settings):
                families.setdefault(c.set_name, []).append(tested)
    return [c for family in families.values() for c in corrected(family)]


def _reasons(a: Arm, b: Arm, set_name: str, settings: Settings) -> tuple[str, ...]:
    """Return why two arms are no fair pair; raise it unless the user insisted."""
    reasons = unequal(a, b, set_name)
    if reasons and not settings.allow_unequal:
        raise UserError(
            f"{a.name} and {b.name} cannot be compared on {set_name}: {'; '.join(reasons)}\n"
            "  --within KEY compares only arms that agree in a config key, "
            "--allow-unequal marks such pairs in every table"
        )
    return reasons


def corrected(family: Sequence[Comparison]) -> list[Comparison]:
    """Return the comparisons with what depends on the size of their family."""
    if not family:
        return []
    adjusted = holm([c.crossed.p_value for c in family])
    of_models = holm([c.permutation.p_value for c in family])
    alpha = LEVEL / len(family)
    sizes = [detectable_difference(c.crossed.components, power=POWER, alpha=alpha) for c in family]
    return [
        replace(
            c,
            family_size=len(family),
            p_holm=p_holm,
            permutation_p_holm=permutation_p_holm,
            detectable=size if size <= LARGEST_DETECTABLE else None,
        )
        for c, p_holm, permutation_p_holm, size in zip(
            family, adjusted, of_models, sizes, strict=True
        )
    ]


def _tested(
    pair: tuple[Arm, Arm, tuple[str, ...]],
    arms: Sequence[Arm],
    place: tuple[str, str, str],
    settings: Settings,
) -> Comparison | None:
    """Return the pair's tests; None where one picture shows no spread."""
    a, b, reasons = pair
    set_name, group, metric = place
    is_paired = settings.seeds_are_paired
    runs = compared_runs(a, b, paired=is_paired)
    answers = [[own for run in one if (own := run.answered("final", set_name))] for one in runs]
    (of_a, of_b), questions = aligned(answers, group=group, metric=metric)
    clusters = [question.cluster for question in questions]
    if len(set(clusters)) < 2:
        return None
    seeds = tuple(tuple(run.seed for run in one) for one in runs)
    pool = pool_of(a, b, seeds[0], arms, settings)
    others = [m for own in pool if (m := run_means(own, set_name, questions, metric))]
    means = (of_a.mean(axis=0).tolist(), of_b.mean(axis=0).tolist())  # over the runs
    return Comparison(
        a=a,
        b=b,
        set_name=set_name,
        group=group,
        metric=metric,
        crossed=compare_arms(of_a, of_b, clusters, seeds_are_paired=is_paired, others=others),
        effect=paired_effect(*means),
        permutation=paired_permutation(*means, clusters, num_samples=settings.num_samples, seed=0),
        mcnemar=tuple(
            mcnemar(row.tolist(), of_b[seeds[1].index(seed)].tolist())
            for seed, row in zip(seeds[0], of_a, strict=True)
            if seed in seeds[1] and metric in BINARY
        ),
        unequal=reasons,
        seeds=(seeds[0], seeds[1]),
        left_out=left_out(a, runs[0]) + left_out(b, runs[1]),
        means=(float(of_a.mean()), float(of_b.mean())),
        are_identical=of_a.shape == of_b.shape and bool((of_a == of_b).all()),
    )
