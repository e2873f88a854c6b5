"""What a study can detect: before it runs, from a plan; afterwards, from its own precision.

A difference is `a` minus `b`, and a cluster is a picture with all of its questions.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from medvqa.config.errors import UserError
from medvqa.evaluation.arrays import Array
from medvqa.evaluation.components import OWN_SHARE, Component, quantile, reach

if TYPE_CHECKING:
    import numpy as np

NUM_PLANS, NUM_DRAWS, NUM_HALVINGS = 16, 128, 30
TINY = 1e-12


def mcnemar_power(
    effect: float,
    num_questions: int,
    discordant_fraction: float,
    *,
    alpha: float = 0.05,
    design_effect: float = 1.0,
    num_seeds: int = 1,
    seed_sd: float = 0.0,
) -> float:
    """Return the chance that a two-sided test finds a true difference of two arms in accuracy.

    D is `discordant_fraction`, the share of questions that exactly one of two runs has right. Per
    question the difference has the variance D without the effect, and D - effect^2 with it. Seeds
    add 2 seed_sd^2 / num_seeds, and t quantiles because they are few. `seed_sd` is the standard
    deviation of one arm's accuracy over seeds on the same questions. D includes differences among
    runs of one arm. They average out over seeds, so the true power is higher with several.

    Sources: Connor, Sample size for testing differences in proportions for the paired-sample
    design, 1987. Bloom, Minimum detectable effects, 1995.

    Raises:
        UserError: If a number is out of its range, or one seed is to show how seeds vary.
    """
    from scipy import stats

    plan = {"alpha": alpha, "design_effect": design_effect, "num_seeds": num_seeds}
    _check_plan(num_questions, discordant_fraction, **plan, seed_sd=seed_sd)
    if abs(effect) > discordant_fraction:
        reason = f"needs more discordant answers than {discordant_fraction}"
        raise UserError(f"an effect of {effect} {reason}")
    per_question = design_effect / num_questions
    over_seeds = 2 * seed_sd**2 / num_seeds
    without = discordant_fraction * per_question + over_seeds
    freedom = 2 * (num_seeds - 1) * (without / over_seeds) ** 2 if over_seeds else math.inf
    threshold = stats.t.ppf(1 - alpha / 2, freedom) * math.sqrt(without)
    spread = math.sqrt(max(without - effect**2 * per_question, 1e-300))
    return float(
        sum(stats.t.cdf((shift - threshold) / spread, freedom) for shift in (effect, -effect))
    )


def minimal_detectable_effect(
    num_questions: int, discordant_fraction: float, *, power: float = 0.8, **plan: Any
) -> float | None:
    """Return the smallest true difference that is found with probability `power`.

    Everything else is as in `mcnemar_power`. The result is None where not even a difference as
    large as `discordant_fraction` is found so often.

    Raises:
        UserError: If a number is out of its range, or one seed is to show how seeds vary.
    """
    from scipy.optimize import brentq

    _check_power(plan.get("alpha", 0.05), power)

    def missing(effect: float) -> float:
        return mcnemar_power(effect, num_questions, discordant_fraction, **plan) - power

    if missing(discordant_fraction) < 0:
        return None
    return float(brentq(missing, 0.0, discordant_fraction, xtol=1e-15))


def detectable_difference(
    components: Sequence[Component], *, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Return the true difference that a comparison of this precision detects with this power.

    The test is simulated with the estimated variances in place of the true ones. Each variance is
    drawn from the chi-squared distribution of its degrees of freedom. The drawn variances give the
    half interval that a difference must exceed. With one component this is the noncentral t. The
    result is corrected for the bias of plugging in estimates. It describes the design; it excuses
    no result.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 10.6.

    Raises:
        UserError: If power does not lie between alpha and 1.
    """
    import numpy as np

    _check_power(alpha, power)
    if not reach(components, alpha):
        return 0.0
    rng = np.random.default_rng(0)
    # The first plan has the estimates, the others what might have been estimated instead.
    plans = [np.append(1.0, _mixed(c, NUM_PLANS, rng)[0]) * c.unbiased for c in components]
    spread = np.sqrt(np.maximum(sum(plans), TINY))[:, None]
    squares: Any = 0.0
    for c, plan in zip(components, plans, strict=True):
        pooled, own = _mixed(c, NUM_DRAWS, rng)
        drawn = plan[:, None] * np.maximum(pooled, OWN_SHARE * own)
        squares = squares + np.maximum(drawn, c.floor) * (
            quantile(1 - alpha / 2, c.degrees_of_freedom) ** 2
        )
    needed = _needed(np.sqrt(squares), spread, power)
    return float(2 * needed[0] - needed[1:].mean())


def _mixed(c: Component, number: int, rng: "np.random.Generator") -> tuple[Array, Array]:
    """Return draws of a variance of mean 1: pooled, and of the pair's own arms, stratified."""
    import numpy as np
    from scipy import stats

    def draws(freedom: float) -> Array:
        if not 0 < freedom < math.inf:
            return np.ones(number)
        grid = (rng.permutation(number) + 0.5) / number
        values = stats.chi2.ppf(grid, freedom)
        return np.asarray(values / values.mean())

    share = c.own_freedom / c.degrees_of_freedom if c.own_freedom else 1.0
    own = draws(c.own_freedom or c.degrees_of_freedom)
    rest = draws(c.degrees_of_freedom - c.own_freedom)
    return share * own + (1 - share) * rest, own


def _needed(half: Array, spread: Array, power: float) -> Array:
    """Return the difference by which a normal estimate exceeds the half intervals so often.

    Args:
        half: Half intervals as (plans, draws).
        spread: The estimate's standard deviation as (plans, 1).
        power: Wanted share.
    """
    import numpy as np
    from scipy.special import ndtr

    low, high = np.zeros(len(half)), (half.max(axis=1) + 10 * spread[:, 0])
    for _ in range(NUM_HALVINGS):
        middle = (low + high) / 2
        is_enough = ndtr((middle[:, None] - half) / spread).mean(axis=1) >= power
        low, high = np.where(is_enough, low, middle), np.where(is_enough, middle, high)
    return np.asarray(high)


def _check_power(alpha: float, power: float) -> None:
    if not alpha < power < 1:
        raise UserError(f"power must lie between alpha ({alpha}) and 1, not at {power}")


def _check_plan(
    num_questions: float,
    discordant_fraction: float,
    *,
    alpha: float,
    design_effect: float,
    num_seeds: float,
    seed_sd: float,
) -> None:
    for holds, message in (
        (num_questions > 0, f"num_questions must be positive, not {num_questions}"),
        (0 < discordant_fraction <= 1, f"discordant_fraction {discordant_fraction} not in (0, 1]"),
        (0 < alpha < 1, f"alpha must lie between 0 and 1, not at {alpha}"),
        (0 < design_effect < math.inf, f"design_effect must be positive, not {design_effect}"),
        (num_seeds > 0, f"num_seeds must be positive, not {num_seeds}"),
        (0 <= seed_sd < math.inf, f"seed_sd must be 0 or more, not {seed_sd}"),
        (num_seeds > 1 or seed_sd == 0, "one seed shows no seed variance; plan num_seeds >= 2"),
    ):
        if not holds:
            raise UserError(message)
