"""Paired tests and effect sizes of scores on the same questions.

Everywhere a difference is `a` minus `b`, and a cluster is a picture with all of its questions.
"""

import gc
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from medvqa.config.errors import UserError
from medvqa.evaluation.arrays import Array, Scores

# Sign patterns are drawn in blocks of this many signs, so that any data set fits into memory.
SIGNS_PER_BLOCK = 4_000_000


@dataclass(frozen=True, kw_only=True)
class PermutationTest:
    """A sign-flip test; it is exact where every flip was counted and none was drawn."""

    difference: float
    p_value: float
    num_clusters: int
    is_exact: bool


@dataclass(frozen=True, kw_only=True)
class McNemarTest:
    """Questions that only one of the two has right, and what a fair coin would make of them.

    Attributes:
        p_value: Exact conditional; never above its level, often far below.
        mid_p_value: Closer to its level, without the guarantee.
    """

    num_questions: int
    only_a: int
    only_b: int
    p_value: float
    mid_p_value: float


@dataclass(frozen=True, kw_only=True)
class PairedEffect:
    """How far `a` lies above `b` on the same questions.

    Attributes:
        cohens_dz: Mean over standard deviation of the differences; None if all are equal.
        cohens_h: Difference of arcsine-transformed proportions; None unless scores are 0 or 1.
        odds_ratio: Questions right in `a` only over those right in `b` only; infinite without the
            latter, None without either or unless scores are 0 or 1.
    """

    cohens_dz: float | None
    cohens_h: float | None
    odds_ratio: float | None


def paired_permutation(
    a: Sequence[float],
    b: Sequence[float],
    clusters: Sequence[str] | None = None,
    *,
    num_samples: int,
    seed: int,
) -> PermutationTest:
    """Return the two-sided sign-flip test of no difference on the same questions.

    If the two were alike, their names could be swapped on any picture, which flips the sign of all
    of its differences. Up to `num_samples` flips are enumerated. Of more, so many are drawn, and p
    is (b + 1) / (m + 1). Without clusters, questions count as independent.

    Source: Phipson and Smyth, Permutation p-values should never be zero, 2010.

    Raises:
        UserError: If there are no scores, one is not finite, or the lengths differ.
    """
    import numpy as np

    names = [str(i) for i in range(len(a))] if clusters is None else clusters
    columns = score_matrix([a, b], len(names))
    sums, _ = cluster_sums(columns[0] - columns[1], names)
    flippable = sums[sums != 0]
    # Sums in another order differ in their last digits, but a tie must count.
    threshold = abs(sums.sum()) - 1e-10 * abs(sums).sum()
    is_exact = len(flippable) <= math.log2(max(num_samples, 1))
    num_patterns = 2 ** len(flippable) if is_exact else num_samples
    num_extreme = sum(
        int(np.sum(abs(sums.sum() - 2 * (signs @ flippable)) >= threshold))
        for signs in _sign_patterns(len(flippable), num_patterns, None if is_exact else seed)
    )
    p_value = num_extreme / num_patterns if is_exact else (num_extreme + 1) / (num_patterns + 1)
    return PermutationTest(
        difference=float(sums.sum() / len(a)),
        p_value=p_value,
        num_clusters=len(sums),
        is_exact=is_exact,
    )


def _sign_patterns(width: int, number: int, seed: int | None) -> Iterator[Any]:
    """Yield blocks of patterns of 0 and 1: all of that width, or with a seed drawn ones."""
    import numpy as np

    rng = np.random.default_rng(seed)
    block = max(1, SIGNS_PER_BLOCK // max(width, 1))
    for start in range(0, number, block):
        rows = np.arange(start, min(start + block, number))
        if seed is None:
            yield rows[:, None] >> np.arange(width) & 1
        else:
            yield rng.integers(0, 2, size=(len(rows), width), dtype=np.int8)


def mcnemar(a_correct: Sequence[bool], b_correct: Sequence[bool]) -> McNemarTest:
    """Return McNemar's exact conditional test and its mid-p variant, both two-sided.

    Given the discordant questions, `only_a` is binomial with probability 1/2. The mid-p counts
    outcomes as extreme as the observed by half. Both treat questions as independent. Where the
    differences of a picture's questions agree, both reject too often. Then `paired_permutation`
    with `clusters` is the test to report.

    Source: Fagerland, Lydersen and Laake, The McNemar test for binary matched-pairs data, 2013.

    Raises:
        UserError: If there are no answers, the lengths differ, or a value is neither 0 nor 1.
    """
    from scipy.stats import binom
    from statsmodels.stats.contingency_tables import mcnemar as exact_mcnemar

    columns = score_matrix([a_correct, b_correct])
    if not is_binary(columns):
        raise UserError("McNemar's test needs answers that are right (1) or wrong (0)")
    differences = columns[0] - columns[1]
    only_a, only_b = int((differences > 0).sum()), int((differences < 0).sum())
    p_value = float(exact_mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue)
    # Half of what is exactly as extreme: one of two equal tails, or half of the middle.
    as_extreme = float(binom.pmf(only_a, only_a + only_b, 0.5)) * (0.5 if only_a == only_b else 1)
    return McNemarTest(
        num_questions=len(a_correct),
        only_a=only_a,
        only_b=only_b,
        p_value=p_value,
        mid_p_value=p_value - as_extreme if only_a or only_b else 1.0,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for the size of their family, in the input's order.

    Holm, A simple sequentially rejective multiple test procedure, 1979; computed by statsmodels.

    Raises:
        UserError: If there is none, or one is no probability.
    """
    from statsmodels.stats.multitest import multipletests

    if not p_values:
        raise UserError("no p-values to adjust")
    if invalid := [p for p in p_values if not 0 <= p <= 1]:
        raise UserError(f"a p-value lies between 0 and 1, not {invalid[0]}")
    # statsmodels collects garbage in each call: half a second per family in a large process.
    gc.freeze()
    try:
        adjusted: list[float] = multipletests(p_values, method="holm")[1].tolist()
    finally:
        gc.unfreeze()
    return adjusted


def paired_effect(a: Sequence[float], b: Sequence[float]) -> PairedEffect:
    """Return effect sizes of `a` over `b` on the same questions.

    The odds ratio is the conditional estimate of McNemar's pairs.

    Sources: Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988 (h: section 6.2;
    d_z: 2.3.5). Agresti, Categorical Data Analysis, 2013, section 11.2 (odds ratio).

    Raises:
        UserError: If there are no scores, one is not finite, or the lengths differ.
    """
    columns = score_matrix([a, b])
    differences = columns[0] - columns[1]
    spread = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    cohens_h = odds_ratio = None
    if is_binary(columns):
        angles = [2 * math.asin(math.sqrt(column.mean())) for column in columns]
        cohens_h = angles[0] - angles[1]
        only_a, only_b = int((differences > 0).sum()), int((differences < 0).sum())
        if only_a or only_b:
            odds_ratio = only_a / only_b if only_b else math.inf
    return PairedEffect(
        cohens_dz=float(differences.mean()) / spread if spread else None,
        cohens_h=cohens_h,
        odds_ratio=odds_ratio,
    )


def score_matrix(rows: Scores, num_questions: int | None = None) -> Array:
    """Return scores of the same questions as (rows, questions), for so many named pictures.

    Raises:
        UserError: If there are none, one is not finite, or the lengths differ.
    """
    import numpy as np

    if not len(rows) or not len(rows[0]):
        raise UserError("no values to average; is the split or the filter empty?")
    if len(lengths := {len(row) for row in rows}) > 1:
        raise UserError(f"scores of different questions: {sorted(lengths)} values to be paired")
    if num_questions is not None and len(rows[0]) != num_questions:
        raise UserError(f"{len(rows[0])} values but {num_questions} clusters")
    matrix = np.asarray(rows, dtype=np.float64)
    if num_wrong := int((~np.isfinite(matrix)).sum()):
        raise UserError(f"{num_wrong} of {matrix.size} scores are NaN or infinite")
    return matrix


def cluster_sums(values: Array, clusters: Sequence[str]) -> tuple[Array, Array]:
    """Return each cluster's sum and size, clusters in alphabetical order.

    The sums of (questions,) are (clusters,), those of (runs, questions) are (runs, clusters).
    """
    import numpy as np

    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.apply_along_axis(lambda row: np.bincount(index, weights=row), -1, values)
    return sums.astype(np.float64), np.bincount(index).astype(np.float64)


def is_binary(matrix: Array) -> bool:
    """Return whether all scores are right (1) or wrong (0)."""
    return bool(((matrix == 0) | (matrix == 1)).all())
