"""Arms over several seeds: how well each is known, and how two of them differ.

An arm is one way to train; its runs differ in the seed alone and answer the same questions. A
difference is `a` minus `b`, and a cluster is a picture with all of its questions.

Every run answers every question, so seeds and pictures are crossed. The variance of the mean has a
part from seeds and one from pictures. The interval gives each part the t quantile of its own
degrees of freedom. The part from seeds is pooled over all arms given. docs/statistics.md has the
false positives, the power and the other methods.

One run in an arm cannot show how seeds vary. Then the interval covers new questions to these very
models, but does not compare two ways to train.

Sources: Banerjee, Approximate confidence interval for linear functions of means of k populations
when the population variances are not equal, 1960. Bouthillier et al., Accounting for variance in
machine learning benchmarks, 2021.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from medvqa.config.errors import UserError
from medvqa.data.example import Score
from medvqa.evaluation.arrays import Array, Scores, Values
from medvqa.evaluation.components import (
    METHODS,
    Component,
    Method,
    p_value,
    reach,
    standard_error,
)
from medvqa.evaluation.intervals import Z, effective_size, t_quantile, wilson
from medvqa.evaluation.statistics import cluster_sums, is_binary, score_matrix

VarianceOf = Literal["questions", "questions and seeds"]
LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class ArmMean:
    """One arm's score; `variance_of` names the sources of variance in the interval."""

    score: Score
    num_seeds: int
    num_clusters: int
    variance_of: VarianceOf


@dataclass(frozen=True, kw_only=True)
class ArmComparison:
    """Two arms on the same questions; `variance_of` names the sources in the interval.

    Attributes:
        difference: Mean over runs and questions, with the interval to report.
        p_value: Two-sided; below 0.05 exactly where that interval excludes 0.
        components: The parts of the difference's variance, each with its degrees of freedom.
        num_seeds: Of a and of b.
        num_pooled: Arms from which the variance over seeds is estimated.
    """

    difference: Score
    p_value: float
    components: tuple[Component, ...]
    num_seeds: tuple[int, int]
    num_clusters: int
    num_pooled: int
    is_paired: bool
    variance_of: VarianceOf

    @property
    def standard_error(self) -> float:
        """Of the difference."""
        return standard_error(self.components)

    @property
    def test(self) -> str:
        """Name of the test behind the p-value."""
        if self.variance_of == "questions":
            return "t over pictures"
        return f"t by component, seed variance of {self.num_pooled} arms"

    @property
    def degrees_of_freedom(self) -> str:
        """Of each component, for example `8 seeds, 61 pictures`."""
        sources: dict[str, list[str]] = {}
        for c in self.components:
            sources.setdefault(c.source, []).append(f"{c.degrees_of_freedom:.3g}")
        return ", ".join(f"{'+'.join(numbers)} {name}" for name, numbers in sources.items())

    def p_below(self, bound: float) -> float:
        """Return the one-sided p-value of a true difference of `bound` or more."""
        shift = self.difference.mean - bound
        two_sided = p_value(shift, self.components)
        return two_sided / 2 if shift < 0 else 1 - two_sided / 2


def compare_arms(
    a: Scores,
    b: Scores,
    clusters: Sequence[str],
    *,
    seeds_are_paired: bool,
    others: Sequence[Sequence[float]] = (),
    method: Method = "by_component",
) -> ArmComparison:
    """Return the difference of two arms, with pictures and seeds both as random draws.

    All runs answer the same questions in the same order, about the pictures `clusters`.
    `seeds_are_paired` says whether run i of all arms shares what its seed decides: decide this
    before looking at the results. `others` are more arms: each run's mean on the same questions.

    Raises:
        UserError: If scores are missing or not finite, lengths differ, all questions share one
            picture, or paired arms have different numbers of runs.
    """
    import numpy as np

    if seeds_are_paired and len(a) != len(b):
        raise UserError(f"paired seeds, but {len(a)} runs of one arm and {len(b)} of the other")
    pool = [x for x in others if len(x) == len(a) or (not seeds_are_paired and len(x) > 1)]
    arms = [score_matrix(arm, len(clusters)) for arm in (a, b)]
    sums, (sizes, _) = zip(*(cluster_sums(arm, clusters) for arm in arms), strict=True)
    _check_pictures(len(sizes))
    parts = METHODS[method](sums, sizes, seeds_are_paired, [np.asarray(x) for x in pool])
    mean = float(arms[0].mean() - arms[1].mean())
    half = reach(parts.components, LEVEL)
    return ArmComparison(
        difference=Score(mean=mean, low=mean - half, high=mean + half, num_examples=len(clusters)),
        p_value=p_value(mean, parts.components),
        components=parts.components,
        num_seeds=(len(a), len(b)),
        num_clusters=len(sizes),
        num_pooled=parts.num_pooled,
        is_paired=seeds_are_paired,
        variance_of="questions and seeds" if min(len(a), len(b)) > 1 else "questions",
    )


def arm_mean(
    scores: Scores,
    clusters: Sequence[str],
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    method: Method = "by_component",
) -> ArmMean:
    """Return an arm's mean with the interval of `compare_arms`: seeds and pictures both drawn.

    Questions on one picture are not independent: the variance is that of whole pictures.
    Right-or-wrong scores of one run count for at most one independent answer per question. Between
    0 and 1 the interval has Wilson's form (see `wilson`), else it is cut at the bounds. Two arms
    answer the same questions, so whether they differ is never read from two such intervals: that is
    what `compare_arms` is for.

    Raises:
        UserError: If scores are missing or not finite, or all questions share one picture.
    """
    matrix = score_matrix(scores, len(clusters))
    sums, sizes = cluster_sums(matrix, clusters)
    _check_pictures(len(sizes))
    mean = float(matrix.mean())
    components = METHODS[method]([sums], sizes, True, ()).components
    if method == "by_component" and len(sums) == 1:
        variance = components[0].variance
        if is_binary(matrix):
            variance = max(variance, mean * (1 - mean) / len(clusters))
        half = t_quantile(len(sizes) - 1) * math.sqrt(variance)
    else:
        half = reach(components, LEVEL)
    low, high = max(mean - half, bounds[0]), min(mean + half, bounds[1])
    if method == "by_component" and bounds == (0, 1):
        low, high = _proportion_interval(mean, half, sums, sizes)
    score = Score(mean=mean, low=low, high=high, num_examples=len(clusters))
    return ArmMean(
        score=score,
        num_seeds=len(sums),
        num_clusters=len(sizes),
        variance_of="questions and seeds" if len(sums) > 1 else "questions",
    )


def run_mean(
    values: Values,
    clusters: Sequence[str],
    *,
    bounds: tuple[float, float] = (0, 1),
) -> Score:
    """Return the mean of one run with its 95 % interval over new pictures: see `arm_mean`.

    One picture alone says nothing, so all values are possible.

    Raises:
        UserError: If there is nothing to average, a value is not finite, or the lengths differ.
    """
    if len(set(clusters)) > 1:
        return arm_mean([values], clusters, bounds=bounds).score
    mean = float(score_matrix([values], len(clusters)).mean())
    return Score(mean=mean, low=bounds[0], high=bounds[1], num_examples=len(clusters))


def _proportion_interval(
    mean: float, half: float, sums: Array, sizes: Array
) -> tuple[float, float]:
    """Return the interval in [0, 1] of a mean whose plain interval has that half width.

    The mean of one run moves in steps, that of several runs hardly does: only the former is
    corrected for continuity. `sums` is (runs, pictures).
    """
    quantile = t_quantile(len(sizes) - 1)
    size = effective_size(mean, (half / quantile) ** 2, sums.mean(axis=0), sizes)
    return wilson(mean, size * (Z / quantile) ** 2, is_corrected=len(sums) == 1)


def _check_pictures(num_clusters: int) -> None:
    if num_clusters < 2:
        raise UserError("all questions share one picture; its spread over pictures is unknown")
