"""Variance of a mean over crossed seeds and pictures, source by source, and what follows from it.

A method turns the scores of arms into components; interval, p-value and power use only those.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from medvqa.evaluation.arrays import Array

Method = Literal["by_component", "satterthwaite"]
UNEQUAL_LEVEL = 0.001  # of Bartlett's test, below which seed variances are not pooled
OWN_SHARE = 0.8  # of the pair's own variance over seeds, which the pooled one never falls below
SMALLEST_P = 1e-15


@dataclass(frozen=True)
class Component:
    """One source's part of the variance of a mean.

    Attributes:
        variance: What interval and test use; never below a bound, so too large on average.
        unbiased: The plain estimate, which can be negative; what is planned with.
        floor: The bound, which is known from many more degrees of freedom.
        own_freedom: Of the degrees of freedom, those of the pair's own arms; 0 if all are.
    """

    source: str
    variance: float
    degrees_of_freedom: float
    unbiased: float
    floor: float = 0.0
    own_freedom: float = 0.0


@dataclass(frozen=True)
class Parts:
    """The components, and how many arms the variance over seeds is estimated from."""

    components: tuple[Component, ...]
    num_pooled: int


def by_component(
    sums: Sequence[Array], sizes: Array, paired: bool, others: Sequence[Array] = ()
) -> Parts:
    """Return the components of the difference of two arms, or of a single arm's mean.

    The interaction is the variance of single answers that flip from seed to seed. Both the variance
    over pictures and that over seeds contain it, so it is subtracted from the former. The part from
    seeds is never below the interaction. Nor is it below `OWN_SHARE` of what the two arms alone
    show: their seeds may vary more than others'.

    Source: Cameron, Gelbach and Miller, Robust inference with multiway clustering, 2011.

    Args:
        sums: Of one or two arms, the scores' sums as (runs, pictures).
        sizes: Questions of each picture.
        paired: Whether run i of all arms shares its seed.
        others: Of more arms, each run's mean; they help to estimate how much seeds vary.
    """
    pair = [sums[0] - sums[1]] if paired and len(sums) > 1 else list(sums)
    over_pictures = _over_pictures(_mean_of_pair(sums), sizes)
    if min(len(one) for one in pair) < 2:
        only = Component("pictures", over_pictures, len(sizes) - 1, over_pictures)
        return Parts((only,), 0)
    flips = [_interaction(one, sizes) for one in pair]
    left = over_pictures - sum(flips)
    rest = Component("pictures", max(left, 0.0), len(sizes) - 1, left)
    own = [_over_seeds(one, sizes) for one in pair]
    means = [*(one.sum(axis=1) / sizes.sum() for one in sums), *others]
    pooled = _pooled(means, paired) if len(sums) > 1 else None
    if pooled is None:
        alone = (
            Component("seeds", max(variance, flip), len(one) - 1, variance, flip)
            for one, variance, flip in zip(pair, own, flips, strict=True)
        )
        return Parts((*alone, rest), len(sums))
    variance, freedom, num_pooled = pooled
    bound = max(variance, OWN_SHARE * sum(own), sum(flips))
    own_freedom = sum(len(one) - 1 for one in pair)
    seeds = Component("seeds", bound, freedom, variance, sum(flips), own_freedom)
    return Parts((seeds, rest), num_pooled)


def satterthwaite(
    sums: Sequence[Array], sizes: Array, paired: bool, others: Sequence[Array] = ()
) -> Parts:
    """Return one component with Satterthwaite's degrees of freedom (1946), from two arms alone.

    The preregistered studies use it. With three seeds it finds too many differences.
    """
    pair = [sums[0] - sums[1]] if paired and len(sums) > 1 else list(sums)
    pictures = _over_pictures(_mean_of_pair(sums), sizes)
    seeds = pair if min(len(one) for one in pair) > 1 else []
    over_seeds = [_over_seeds(one, sizes) for one in seeds]
    total = sum(over_seeds) + pictures
    spread = pictures**2 / (len(sizes) - 1)
    spread += sum(v**2 / (len(one) - 1) for v, one in zip(over_seeds, seeds, strict=True))
    once = total - sum(_interaction(one, sizes) for one in seeds)
    variance = max(once, total - pictures, pictures)
    freedom = total**2 / spread if spread else math.inf
    return Parts((Component("seeds and pictures", variance, freedom, variance),), len(pair))


METHODS: dict[Method, Callable[[Sequence[Array], Array, bool, Sequence[Array]], Parts]] = {
    "by_component": by_component,
    "satterthwaite": satterthwaite,
}


def reach(components: Sequence[Component], level: float) -> float:
    """Return half the width of the two-sided interval: each variance has its own t quantile."""
    return math.sqrt(
        sum(c.variance * quantile(1 - level / 2, c.degrees_of_freedom) ** 2 for c in components)
    )


def standard_error(components: Sequence[Component]) -> float:
    """Return the standard error of the mean or difference."""
    return math.sqrt(sum(c.variance for c in components))


def p_value(difference: float, components: Sequence[Component]) -> float:
    """Return the two-sided level at which the interval ends at 0; never below `SMALLEST_P`."""
    from scipy import special, stats
    from scipy.optimize import brentq

    if difference == 0:
        return 1.0
    active = [c for c in components if c.variance]
    if len(active) == 1:
        ratio = abs(difference) / math.sqrt(active[0].variance)
        return float(2 * stats.t.sf(ratio, active[0].degrees_of_freedom))

    def missing(log_level: float) -> float:
        half = math.exp(log_level) / 2
        # What stats.t computes, without its checks: they take most of the time.
        squares = (c.variance * special.stdtrit(c.degrees_of_freedom, half) ** 2 for c in active)
        return math.sqrt(sum(squares)) - abs(difference)

    lowest = math.log(SMALLEST_P)
    if missing(lowest) < 0:
        return SMALLEST_P if active else 0.0
    return math.exp(float(brentq(missing, lowest, 0.0, xtol=1e-12)))


@functools.lru_cache(maxsize=4096)
def quantile(probability: float, degrees_of_freedom: float) -> float:
    """Return the quantile of t."""
    from scipy import stats

    return float(stats.t.ppf(probability, degrees_of_freedom))


@functools.lru_cache(maxsize=256)
def _chi_squared(degrees_of_freedom: int) -> float:
    from scipy import stats

    return float(stats.chi2.isf(UNEQUAL_LEVEL, degrees_of_freedom))


def _mean_of_pair(sums: Sequence[Array]) -> Array:
    mean: Array = sums[0].mean(axis=0)
    return mean - sums[1].mean(axis=0) if len(sums) > 1 else mean


def _over_pictures(sums: Array, sizes: Array) -> float:
    """Return the variance of the mean over pictures; `sums` is (pictures,)."""
    residuals = sums - sums.sum() / sizes.sum() * sizes
    return float((residuals**2).sum() / sizes.sum() ** 2 * len(sizes) / (len(sizes) - 1))


def _over_seeds(sums: Array, sizes: Array) -> float:
    """Return the variance of the mean over seeds; `sums` is (runs, pictures)."""
    return float((sums.sum(axis=1) / sizes.sum()).var(ddof=1) / len(sums))


def _interaction(sums: Array, sizes: Array) -> float:
    """Return what seeds and pictures add to the variance of the mean only together."""
    num_runs, num_clusters = sums.shape
    means = sums.sum(axis=1) / sizes.sum()
    residuals = sums - sums.mean(axis=0) - (means - means.mean())[:, None] * sizes
    value = (residuals**2).sum() / (num_runs * (num_runs - 1)) / sizes.sum() ** 2
    return float(value * num_clusters / (num_clusters - 1))


def _pooled(means: Sequence[Array], paired: bool) -> tuple[float, int, int] | None:
    """Return the variance of the first two arms' difference over seeds, pooled over all arms.

    An arm whose runs all agree shows no variance and enters only as one of the two.

    Returns:
        Variance, degrees of freedom and number of arms; None where variances are far from equal.
    """
    import numpy as np

    arms = [*means[:2], *(one for one in means[2:] if np.ptp(one) > 0)]
    residuals = [one - one.mean() for one in arms]
    freedom = sum(len(one) - 1 for one in arms)
    if paired:
        shared = np.mean(residuals, axis=0)
        residuals = [one - shared for one in residuals]
        freedom = (len(arms) - 1) * (len(means[0]) - 1)
    squares = [float((r**2).sum()) for r in residuals]
    if _are_unequal([s / (len(arm) - 1) for s, arm in zip(squares, arms, strict=True)], arms):
        return None
    return sum(squares) / freedom * (1 / len(means[0]) + 1 / len(means[1])), freedom, len(arms)


def _are_unequal(variances: Sequence[float], arms: Sequence[Array]) -> bool:
    """Return whether Bartlett's test (1937) finds the arms' variances over seeds unequal."""
    freedoms = [len(arm) - 1 for arm in arms]
    if len(arms) < 3 or not any(variances):
        return False
    total = sum(freedoms)
    mean = sum(f * v for f, v in zip(freedoms, variances, strict=True)) / total
    logs = sum(f * math.log(max(v, 1e-12)) for f, v in zip(freedoms, variances, strict=True))
    scale = 1 + (sum(1 / f for f in freedoms) - 1 / total) / (3 * (len(arms) - 1))
    return (total * math.log(mean) - logs) / scale > _chi_squared(len(arms) - 1)
