"""What a study can detect: textbook formulas, SciPy, statsmodels, and simulations of power."""

import math
from functools import partial

import numpy as np
import pytest
from scipy import stats

from medvqa.config.errors import UserError
from medvqa.evaluation.comparison import compare_arms
from medvqa.evaluation.components import Component
from medvqa.evaluation.power import (
    detectable_difference,
    mcnemar_power,
    minimal_detectable_effect,
)
from medvqa.evaluation.statistics import mcnemar

compare = partial(compare_arms, seeds_are_paired=False)


def one_each(num_questions: int) -> list[str]:
    return [str(i) for i in range(num_questions)]


# Before the study: power, minimal detectable effect.


@pytest.mark.parametrize(
    ("discordant_fraction", "effect"), [(0.1, 0.0415), (0.2, 0.0588)], ids=["10 %", "20 %"]
)
def test_vqa_rads_451_questions_can_show_four_to_six_points(discordant_fraction, effect):
    # Connor by hand: effect * sqrt(451) = 1.960 sqrt(D) + 0.8416 sqrt(D - effect^2).
    detectable = minimal_detectable_effect(451, discordant_fraction)
    needed = 1.959964 * math.sqrt(discordant_fraction)
    needed += 0.841621 * math.sqrt(discordant_fraction - detectable**2)
    assert detectable * math.sqrt(451) == pytest.approx(needed, rel=1e-5)
    assert detectable == pytest.approx(effect, abs=0.0002)
    assert mcnemar_power(detectable, 451, discordant_fraction) == pytest.approx(0.8, abs=1e-6)
    assert mcnemar_power(-detectable, 451, discordant_fraction) == pytest.approx(0.8, abs=1e-6)


def test_power_at_no_effect_is_the_level():
    for plan in ({}, {"design_effect": 2.0}, {"num_seeds": 3, "seed_sd": 0.02}):
        assert mcnemar_power(0.0, 451, 0.2, alpha=0.01, **plan) == pytest.approx(0.01)


def test_clustering_and_seed_variance_ask_for_larger_effects():
    plain = minimal_detectable_effect(451, 0.15)
    clustered = minimal_detectable_effect(451, 0.15, design_effect=1.5)
    assert clustered == pytest.approx(minimal_detectable_effect(451 / 1.5, 0.15))
    three, ten = (minimal_detectable_effect(451, 0.15, num_seeds=n, seed_sd=0.01) for n in (3, 10))
    assert plain < ten < three
    # Bloom's multiplier where seeds are all there is: (t.975 + t.8) with 2 (n - 1) degrees.
    alone = minimal_detectable_effect(10**9, 0.5, num_seeds=3, seed_sd=0.01)
    multiplier = stats.t(4).ppf(0.975) + stats.t(4).ppf(0.8)
    assert alone == pytest.approx(multiplier * math.sqrt(2 * 0.01**2 / 3), rel=5e-3)


def test_too_small_a_study_detects_nothing():
    assert minimal_detectable_effect(20, 0.1) is None


@pytest.mark.parametrize("effect", [0.04, 0.055])
def test_power_is_how_often_mcnemar_finds_the_effect(effect):
    rng = np.random.default_rng(11)
    draws = rng.multinomial(451, [(0.15 + effect) / 2, (0.15 - effect) / 2, 0.85], size=1500)
    num_rejected = 0
    for only_a, only_b, same in draws:
        a = [1] * only_a + [0] * only_b + [1] * same
        b = [0] * only_a + [1] * only_b + [1] * same
        num_rejected += mcnemar(a, b).mid_p_value < 0.05
    # 1,500 simulations have a standard error of 1.3 points.
    assert num_rejected / 1500 == pytest.approx(mcnemar_power(effect, 451, 0.15), abs=0.03)


@pytest.mark.parametrize(("num_runs", "seed_sd"), [(3, 0.03), (5, 0.03), (5, 0.01)])
def test_power_is_how_often_arms_over_seeds_differ(num_runs, seed_sd):
    # A fixed threshold per question decides its answer. A run's seed shifts all thresholds, so
    # seeds add the variance of seed_sd, and single answers hardly flip.
    rng = np.random.default_rng(12)
    effect, num_found, discordant, num_simulations = 0.06, 0, [], 300
    for _ in range(num_simulations):
        a_ease, b_ease = rng.random((2, 400))
        shared = rng.random(400) < 0.8
        b_ease = np.where(shared, a_ease, b_ease)
        a, b = (
            ease < 0.6 + shift + seed_sd * rng.normal(size=(num_runs, 1))
            for ease, shift in ((a_ease, effect / 2), (b_ease, -effect / 2))
        )
        num_found += compare(a, b, one_each(400)).p_value < 0.05
        discordant.append((a.mean(0) - b.mean(0)).var() + effect**2)
    expected = mcnemar_power(
        effect, 400, float(np.mean(discordant)), num_seeds=num_runs, seed_sd=seed_sd
    )
    assert num_found / num_simulations == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"num_questions": 0}, "num_questions"),
        ({"discordant_fraction": 0.0}, "discordant_fraction"),
        ({"discordant_fraction": math.nan}, "discordant_fraction"),
        ({"alpha": 0.9}, "power must lie"),
        ({"alpha": 0.0}, "alpha must lie"),
        ({"power": 1.0}, "power must lie"),
        ({"design_effect": math.nan}, "design_effect"),
        ({"num_seeds": 0}, "num_seeds"),
        ({"num_seeds": 2, "seed_sd": -0.1}, "seed_sd"),
        ({"seed_sd": 0.01}, "plan num_seeds >= 2"),
    ],
)
def test_a_plan_out_of_range_is_one_clear_line(plan, message):
    with pytest.raises(UserError, match=message):
        minimal_detectable_effect(**{"num_questions": 451, "discordant_fraction": 0.1, **plan})


def test_an_effect_beyond_the_discordant_answers_is_impossible():
    with pytest.raises(UserError, match="needs more discordant answers"):
        mcnemar_power(0.2, 451, 0.1)


# After the study: what its own precision could have shown.


def test_the_detectable_difference_is_blooms_multiple_of_the_standard_error():
    # With normal quantiles 1.96 + 0.84 = 2.80 standard errors, his rule of thumb.
    known = [Component("pictures", 0.01**2, math.inf, 0.01**2)]
    assert detectable_difference(known) == pytest.approx(0.0280, abs=5e-5)


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 6])
@pytest.mark.parametrize("freedom", [4, 6, 12, 30])
def test_the_detectable_difference_has_its_power_by_the_noncentral_t(freedom, alpha):
    size = detectable_difference(
        [Component("seeds", 0.02**2, freedom, 0.02**2)], power=0.8, alpha=alpha
    )
    # A study puts in its estimated standard error, which is too small on average.
    mean_estimate = stats.chi(freedom).mean() / math.sqrt(freedom)
    threshold = stats.t(freedom).ppf(1 - alpha / 2)
    power = stats.nct(freedom, mean_estimate * size / 0.02).sf(threshold)
    assert power == pytest.approx(0.8, abs=0.01)


def test_a_power_below_the_level_is_refused():
    with pytest.raises(UserError, match="power must lie between"):
        detectable_difference([Component("seeds", 0.01, 5, 0.01)], power=0.01)
