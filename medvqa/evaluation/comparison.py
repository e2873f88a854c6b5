"""Arms over several seeds: how well each is known, and how two of them differ.

An arm is one way to train; its runs differ in the seed alone and answer the same questions. A
difference is `a` minus `b`, and a cluster is a picture with all of its questions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from medvqa.config.errors import UserError
from medvqa.data.example import Score
from medvqa.evaluation.statistics import cluster_sums, score_matrix

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Scores = Sequence[Sequence[float]] | NDArray[np.float64]

VarianceOf = Literal["questions", "questions and seeds"]


@dataclass(frozen=True, kw_only=True)
class ArmMean:
    """One arm's score; `variance_of` says what the interval speaks of."""

    score: Score
    num_seeds: int
    num_clusters: int
    variance_of: VarianceOf


@dataclass(frozen=True, kw_only=True)
class ArmComparison:
    """Two arms on the same questions; `variance_of` says what the interval speaks of.

    Attributes:
        difference: Mean over runs and questions, with the interval to report.
        p_value: Two-sided; below 0.05 exactly where that interval excludes 0.
        degrees_of_freedom: Of interval and p-value, by Satterthwaite; with few seeds often below 5.
        num_seeds: Of a and of b.
        standard_error: Of the difference, what interval and p-value are made of.
    """

    difference: Score
    p_value: float
    degrees_of_freedom: float
    num_seeds: tuple[int, int]
    num_clusters: int
    variance_of: VarianceOf
    standard_error: float


@dataclass(frozen=True)
class _Variance:
    """One source's part of a mean's variance; `interaction` is what all sources contain."""

    value: float
    interaction: float
    degrees_of_freedom: float


def compare_arms(
    a: "Scores", b: "Scores", clusters: Sequence[str], *, seeds_are_paired: bool
) -> ArmComparison:
    """Return the difference of two arms, with pictures and seeds both as random draws.

    Every run answers every question, so seeds and pictures are crossed: the variance of the mean
    is that over seeds, plus that over pictures, minus their interaction (single answers that flip
    from seed to seed), which is in both (Cameron, Gelbach and Miller, Robust inference with
    multiway clustering, 2011), and never less than either alone. The t quantile (Satterthwaite,
    1946) pays for few seeds; docs/statistics.md has the coverage in simulations.

    One run in an arm cannot show how seeds vary: then the interval speaks of new questions to
    these very models, not of two ways to train (Bouthillier et al., Accounting for variance in
    machine learning benchmarks, 2021).

    Args:
        a: Scores as (runs, questions), questions in the same order in every run.
        b: The same of the other arm, which may have another number of runs.
        clusters: The picture of each question.
        seeds_are_paired: Whether run i of both arms shares what its seed decides; say so before
            looking. It halves the degrees of freedom.

    Raises:
        UserError: If scores are missing or not finite, lengths differ, all questions share one
            picture, or paired arms have different numbers of runs.
    """
    arms = [score_matrix(arm, len(clusters)) for arm in (a, b)]
    if seeds_are_paired and len(a) != len(b):
        raise UserError(f"paired seeds, but {len(a)} runs of one arm and {len(b)} of the other")
    (sums_a, sizes), (sums_b, _) = (cluster_sums(arm, clusters) for arm in arms)
    parts = [sums_a - sums_b] if seeds_are_paired else [sums_a, sums_b]
    over_seeds = [_over_seeds(sums, sizes) for sums in parts] if min(len(a), len(b)) > 1 else []
    over_clusters = _over_clusters(sums_a.mean(axis=0) - sums_b.mean(axis=0), sizes)
    variance, freedom = _crossed(over_seeds, over_clusters)
    mean = float(arms[0].mean() - arms[1].mean())
    return ArmComparison(
        difference=_t_interval(mean, variance, freedom, num_examples=len(clusters)),
        p_value=_t_test(mean, variance, freedom),
        degrees_of_freedom=freedom,
        num_seeds=(len(a), len(b)),
        num_clusters=len(sizes),
        variance_of="questions and seeds" if over_seeds else "questions",
        standard_error=math.sqrt(variance),
    )


def arm_mean(
    scores: "Scores",
    clusters: Sequence[str],
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> ArmMean:
    """Return an arm's mean with the interval of `compare_arms`: seeds and pictures both drawn.

    Two arms answer the same questions, so whether they differ is never read from two such
    intervals: that is what `compare_arms` is for. The interval ends at the bounds of the score.

    Raises:
        UserError: If scores are missing or not finite, or all questions share one picture.
    """
    matrix = score_matrix(scores, len(clusters))
    sums, sizes = cluster_sums(matrix, clusters)
    over_seeds = [_over_seeds(sums, sizes)] if len(sums) > 1 else []
    variance, freedom = _crossed(over_seeds, _over_clusters(sums.mean(axis=0), sizes))
    score = _t_interval(float(matrix.mean()), variance, freedom, num_examples=len(clusters))
    return ArmMean(
        score=replace(score, low=max(score.low, bounds[0]), high=min(score.high, bounds[1])),
        num_seeds=len(sums),
        num_clusters=len(sizes),
        variance_of="questions and seeds" if over_seeds else "questions",
    )


def _over_seeds(sums: "NDArray[np.float64]", sizes: "NDArray[np.float64]") -> _Variance:
    """Return the variance of the mean over seeds; `sums` is (runs, clusters)."""
    num_runs, num_clusters = sums.shape
    means = sums.sum(axis=1) / sizes.sum()
    residuals = sums - sums.mean(axis=0) - (means - means.mean())[:, None] * sizes
    interaction = (residuals**2).sum() / (num_runs * (num_runs - 1)) / sizes.sum() ** 2
    return _Variance(
        value=float(means.var(ddof=1) / num_runs),
        interaction=float(interaction * num_clusters / max(num_clusters - 1, 1)),
        degrees_of_freedom=num_runs - 1,
    )


def _over_clusters(sums: "NDArray[np.float64]", sizes: "NDArray[np.float64]") -> _Variance:
    """Return the variance of the mean over clusters; `sums` is (clusters,)."""
    num_clusters = len(sizes)
    if num_clusters < 2:
        raise UserError("all questions share one picture; its spread over pictures is unknown")
    residuals = sums - sums.sum() / sizes.sum() * sizes
    value = (residuals**2).sum() / sizes.sum() ** 2 * num_clusters / (num_clusters - 1)
    return _Variance(value=float(value), interaction=0.0, degrees_of_freedom=num_clusters - 1)


def _crossed(seeds: Sequence[_Variance], clusters: _Variance) -> tuple[float, float]:
    """Return the variance of the mean over seeds and clusters, and its degrees of freedom."""
    parts = [*seeds, clusters]
    total = sum(part.value for part in parts)
    spread = sum(part.value**2 / part.degrees_of_freedom for part in parts)
    once = total - sum(part.interaction for part in seeds)
    variance = max(once, total - clusters.value, clusters.value)
    return variance, total**2 / spread if spread else math.inf


def _t_interval(mean: float, variance: float, freedom: float, *, num_examples: int) -> Score:
    from scipy import stats

    reach = float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance)
    return Score(mean=mean, low=mean - reach, high=mean + reach, num_examples=num_examples)


def _t_test(mean: float, variance: float, freedom: float) -> float:
    from scipy import stats

    if not variance:
        return float(mean == 0)
    return float(2 * stats.t.sf(abs(mean) / math.sqrt(variance), freedom))
