"""Arms over seeds: textbook formulas, SciPy, and simulations of coverage, errors and power."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
from scipy import stats

from medvqa.comparison import (
    compare_arms,
    estimate_clustering,
    mcnemar_power,
    minimal_detectable_effect,
    student_t_cdf,
    student_t_quantile,
)
from medvqa.example import UserError
from medvqa.statistics import clustered_bootstrap, mcnemar

compare = partial(compare_arms, seeds_are_paired=False, num_samples=200, seed=0)


def one_each(num_questions: int) -> list[str]:
    return [str(i) for i in range(num_questions)]


# Student's t, which SciPy would bring.


@pytest.mark.parametrize("freedom", [0.7, 1, 1.5, 2, 4, 7.3, 30, 500, 2e5, 3e6, math.inf])
def test_t_equals_scipys(freedom):
    reference = stats.norm if freedom == math.inf else stats.t(freedom)
    for t in (-40, -8, -2.1, -0.3, 0, 1e-9, 0.5, 1.96, 6, 300):
        assert student_t_cdf(t, freedom) == pytest.approx(reference.cdf(t), rel=1e-5, abs=1e-14)
    for p in (0.001, 0.3, 0.5, 0.8, 0.975, 0.9995):
        assert student_t_quantile(p, freedom) == pytest.approx(reference.ppf(p), rel=1e-5, abs=1e-9)


# Two arms: the formulas.


def test_one_seed_gives_the_variance_over_pictures_and_says_so():
    # Differences 1, 0 | 0 | 1, by hand: mean 1/2; sums 1, 0, 1 less 1/2 a question: 0, -1/2, 1/2;
    # variance = 3/2 * (1/4 + 1/4) / 4^2 with 2 degrees of freedom.
    result = compare([[1, 0, 0, 1]], [[0, 0, 0, 0]], ["x", "x", "y", "z"])
    reach = stats.t(2).ppf(0.975) * math.sqrt(1.5 * 0.5 / 16)
    assert result.difference.mean == 0.5
    assert result.difference.high == pytest.approx(0.5 + reach)
    assert result.difference.low == pytest.approx(0.5 - reach)
    assert result.p_value == pytest.approx(2 * stats.t(2).sf(0.5 / math.sqrt(1.5 * 0.5 / 16)))
    assert (result.variance_of, result.num_seeds, result.by_seeds) == ("questions", (1, 1), None)
    assert (result.num_clusters, result.difference.num_examples) == (3, 4)


def test_one_seed_in_only_one_arm_does_not_count_as_seed_variance():
    rng = np.random.default_rng(0)
    result = compare(rng.random((3, 20)), rng.random((1, 20)), one_each(20))
    assert (result.variance_of, result.num_seeds, result.by_seeds) == ("questions", (3, 1), None)


@pytest.mark.parametrize("num_runs_b", [3, 5])
def test_by_seeds_equals_scipys_welch_interval(num_runs_b):
    rng = np.random.default_rng(1)
    a, b = rng.random((3, 50)), rng.random((num_runs_b, 50))
    welch = stats.ttest_ind(a.mean(1), b.mean(1), equal_var=False).confidence_interval(0.95)
    result = compare(a, b, one_each(50)).by_seeds
    assert (result.low, result.high) == pytest.approx((welch.low, welch.high))


def test_by_seeds_equals_scipys_paired_interval():
    rng = np.random.default_rng(2)
    a, b = rng.random((4, 50)), rng.random((4, 50))
    paired = stats.ttest_rel(a.mean(1), b.mean(1)).confidence_interval(0.95)
    result = compare(a, b, one_each(50), seeds_are_paired=True).by_seeds
    assert (result.low, result.high) == pytest.approx((paired.low, paired.high))


def test_paired_arms_equal_the_two_way_analysis_of_variance():
    # Crossed random effects, one observation a cell: the grand mean varies by
    # (MS_seeds + MS_questions - MS_residual) / number of cells.
    rng = np.random.default_rng(3)
    num_seeds, num_questions = 4, 60
    d = 0.3 * rng.normal(size=(num_seeds, 1)) + rng.normal(size=(1, num_questions))
    d = d + rng.normal(size=(num_seeds, num_questions))
    by_seed, by_question = d.mean(1, keepdims=True), d.mean(0, keepdims=True)
    ms_seeds = num_questions * by_seed.var(ddof=1)
    ms_questions = num_seeds * by_question.var(ddof=1)
    residual = d - by_seed - by_question + d.mean()
    ms_residual = (residual**2).sum() / (num_seeds - 1) / (num_questions - 1)
    variance = (ms_seeds + ms_questions - ms_residual) / d.size
    assert ms_residual < min(ms_seeds, ms_questions)
    result = compare(d, np.zeros_like(d), one_each(num_questions), seeds_are_paired=True)
    terms = ((ms_seeds / d.size) ** 2 / 3, (ms_questions / d.size) ** 2 / 59)
    freedom = ((ms_seeds + ms_questions) / d.size) ** 2 / sum(terms)
    assert result.degrees_of_freedom == pytest.approx(freedom)
    reach = stats.t(freedom).ppf(0.975) * math.sqrt(variance)
    assert result.difference.high - result.difference.mean == pytest.approx(reach)


def test_the_variance_is_never_below_that_of_one_source_alone():
    # Every answer is a coin of its own, so all the variance is interaction and subtracting it
    # could leave nothing, or less.
    def variance(result):
        reach = result.difference.high - result.difference.mean
        return (reach / student_t_quantile(0.975, result.degrees_of_freedom)) ** 2

    rng = np.random.default_rng(4)
    for _ in range(20):
        a, b = rng.normal(size=(2, 3, 40))
        over_seeds = (a.mean(1).var(ddof=1) + b.mean(1).var(ddof=1)) / 3
        over_pictures = (a.mean(0) - b.mean(0)).var(ddof=1) / 40
        crossed = variance(compare(a, b, one_each(40)))
        assert crossed >= max(over_seeds, over_pictures) * (1 - 1e-9)


def test_the_bootstrap_equals_the_enumeration_of_seeds_and_pictures():
    a = np.array([[4.0, 1, 2, 0], [1, 0, 1, 3]])
    b = np.array([[0.0, 2, 1, 1], [3, 0, 2, 0]])
    pictures = [[0, 1], [2], [3]]
    means = []
    for runs_a, runs_b in itertools.product(itertools.product(range(2), repeat=2), repeat=2):
        for drawn in itertools.product(pictures, repeat=3):
            columns = [question for picture in drawn for question in picture]
            means.append(a[np.ix_(runs_a, columns)].mean() - b[np.ix_(runs_b, columns)].mean())
    result = compare(a, b, ["x", "x", "y", "z"], num_samples=200_000).by_bootstrap
    assert result.low == pytest.approx(np.quantile(means, 0.025), abs=0.05)
    assert result.high == pytest.approx(np.quantile(means, 0.975), abs=0.05)


def test_the_bootstrap_of_one_seed_is_the_clustered_bootstrap():
    rng = np.random.default_rng(5)
    a, b, pictures = rng.random(60), rng.random(60), [str(i // 4) for i in range(60)]
    ours = compare([a], [b], pictures, num_samples=2000).by_bootstrap
    theirs = clustered_bootstrap((a - b).tolist(), pictures, num_samples=2000, seed=0)
    assert (ours.mean, ours.low, ours.high) == pytest.approx((theirs.mean, theirs.low, theirs.high))


def test_paired_seeds_are_resampled_together():
    # What a seed adds to both arms cancels in their difference.
    rng = np.random.default_rng(6)
    seeds, noise = np.repeat(rng.normal(size=(5, 1)), 30, axis=1), 0.01 * rng.normal(size=(5, 30))
    paired = compare(seeds + noise, seeds, one_each(30), seeds_are_paired=True)
    unpaired = compare(seeds + noise, seeds, one_each(30))
    assert paired.by_bootstrap.high < 0.02 < 0.3 < unpaired.by_bootstrap.high
    assert paired.difference.high < 0.02 < 0.3 < unpaired.difference.high


def test_arms_that_answer_alike_differ_by_exactly_nothing():
    result = compare([[1, 0], [1, 0]], [[1, 0], [1, 0]], ["x", "y"])
    assert (result.difference.low, result.difference.high, result.p_value) == (0, 0, 1)


@pytest.mark.parametrize(
    ("a", "b", "clusters", "paired", "message"),
    [
        ([[1, 0]], [[1, 0, 1]], ["x", "y"], False, "3 values but 2 clusters"),
        ([[1, 0], [1]], [[1, 0]], ["x", "y"], False, "different questions"),
        ([[1, math.nan]], [[1, 0]], ["x", "y"], False, "1 of 2 scores are NaN"),
        ([], [[1, 0]], ["x", "y"], False, "no values to average"),
        ([[]], [[]], [], False, "no values to average"),
        ([[1, 0]], [[1, 0]], ["x", "x"], False, "share one picture"),
        ([[1, 0]], [[1, 0]] * 2, ["x", "y"], True, "1 runs of one arm and 2"),
    ],
)
def test_bad_arms_are_one_clear_line(a, b, clusters, paired, message):
    with pytest.raises(UserError, match=message):
        compare(a, b, clusters, seeds_are_paired=paired)


# Two arms: simulations. 95 % nominal; 400 simulations have a standard error of 1.1 points.


def simulated_arms(rng, *, num_runs, seeds, pictures, flips, effect=0.0):
    """Return two arms' scores as (runs, 60 pictures x 4 questions) from normal effects."""
    of_picture = np.repeat(pictures * rng.normal(size=60), 4)
    a, b = (
        seeds * rng.normal(size=(num_runs, 1)) + flips * rng.normal(size=(num_runs, 240))
        for _ in range(2)
    )
    return a + of_picture + effect, b


def coverage(num_runs, *, num_simulations=400, **model):
    """Return how often the three intervals hold the true difference of 0.05."""
    rng = np.random.default_rng(8)
    names = [str(i // 4) for i in range(240)]
    covered = np.zeros(3)
    for _ in range(num_simulations):
        a, b = simulated_arms(rng, num_runs=num_runs, effect=0.05, **model)
        result = compare(a, b, names)
        intervals = (result.difference, result.by_bootstrap, result.by_seeds or result.difference)
        covered += [interval.low <= 0.05 <= interval.high for interval in intervals]
    return covered / num_simulations


@pytest.mark.parametrize("num_runs", [3, 5])
@pytest.mark.parametrize(
    "model",
    [
        {"seeds": 0.05, "pictures": 0.05, "flips": 0.05},
        {"seeds": 0.002, "pictures": 0.5, "flips": 0.1},
        {"seeds": 0.002, "pictures": 0.05, "flips": 0.5},
        {"seeds": 0.03, "pictures": 0.3, "flips": 0.3},
    ],
    ids=["seeds", "pictures", "flips", "all"],
)
def test_the_interval_covers_whatever_dominates(num_runs, model):
    assert 0.92 <= coverage(num_runs, **model)[0] <= 0.985


def test_one_seed_covers_new_questions_only():
    model = {"pictures": 0.3, "flips": 0.3}
    assert 0.92 <= coverage(1, seeds=0, **model)[0] <= 0.98
    assert coverage(1, seeds=0.1, **model)[0] < 0.6


def test_why_the_bootstrap_and_the_seeds_alone_are_not_the_interval_to_report():
    _, by_bootstrap, by_seeds = coverage(3, seeds=0.05, pictures=0.05, flips=0.05)
    assert by_bootstrap < 0.9 < by_seeds
    _, by_bootstrap, by_seeds = coverage(3, seeds=0.002, pictures=0.5, flips=0.1)
    assert by_seeds < 0.5 < 0.9 < by_bootstrap
    assert coverage(3, seeds=0.002, pictures=0.05, flips=0.5)[1] > 0.985


@pytest.mark.parametrize("seeds", [0.0, 0.15], ids=["seeds agree", "seeds vary"])
def test_alike_arms_are_told_apart_in_one_study_of_twenty(seeds):
    # Answers are right where a latent score is positive: binary, clustered, shared difficulty.
    rng = np.random.default_rng(9)
    names = [str(i // 4) for i in range(240)]
    num_found, num_simulations = np.zeros(2), 400
    for _ in range(num_simulations):
        easy = np.repeat(rng.normal(size=60), 4) + rng.normal(size=240)
        a, b = simulated_arms(rng, num_runs=3, seeds=seeds, pictures=0.3, flips=0.3)
        right_a, right_b = easy + a > 0, easy + b > 0
        of_questions_only = compare(right_a[:1], right_b[:1], names)
        p_values = compare(right_a, right_b, names).p_value, of_questions_only.p_value
        num_found += [p < 0.05 for p in p_values]
    assert 0.02 <= num_found[0] / num_simulations <= 0.08
    assert (num_found[1] / num_simulations > 0.15) == (seeds > 0)


# Before the study: clustering, power, minimal detectable effect.


def test_clustering_by_hand_and_as_scipys_analysis_of_variance():
    values, names = [1, 2, 3, 5, 6, 7, 9.0], ["x", "x", "x", "y", "y", "z", "z"]
    f = stats.f_oneway([1, 2, 3], [5, 6], [7, 9]).statistic
    typical_size = (7 - (9 + 4 + 4) / 7) / 2
    result = estimate_clustering(values, names)
    correlation = (f - 1) / (f - 1 + typical_size)
    assert result.intra_cluster_correlation == pytest.approx(correlation)
    assert result.design_effect == pytest.approx(1 + (17 / 7 - 1) * correlation)
    assert (result.num_clusters, result.num_questions) == (3, 7)


@pytest.mark.parametrize(
    ("values", "clusters", "correlation", "effect"),
    [
        ([1, 1, 0, 0], ["x", "x", "y", "y"], 1.0, 2.0),
        ([1, 0, 1, 0], ["x", "x", "y", "y"], -1.0, 1.0),
        ([1, 1, 1, 1], ["x", "x", "y", "y"], 0.0, 1.0),
        ([1, 0, 1, 0], ["x", "y", "z", "w"], 0.0, 1.0),
    ],
    ids=["all within", "none within", "constant", "one question a picture"],
)
def test_clustering_at_its_limits(values, clusters, correlation, effect):
    result = estimate_clustering(values, clusters)
    assert (result.intra_cluster_correlation, result.design_effect) == (correlation, effect)


def test_the_design_effect_is_the_variance_of_the_mean_over_that_of_independent_questions():
    rng = np.random.default_rng(10)
    sizes = rng.integers(1, 12, size=80)
    names = [str(i) for i, size in enumerate(sizes) for _ in range(size)]
    estimates, means, variances = [], [], []
    for _ in range(400):
        values = np.repeat(rng.normal(size=80), sizes) + 2 * rng.normal(size=sizes.sum())
        estimates.append(estimate_clustering(values.tolist(), names))
        means.append(values.mean())
        variances.append(5 / len(values))
    correlations = [e.intra_cluster_correlation for e in estimates]
    assert np.mean(correlations) == pytest.approx(1 / 5, abs=0.01)
    true = np.var(means) / np.mean(variances)
    assert np.mean([e.design_effect for e in estimates]) == pytest.approx(true, rel=0.15)


@pytest.mark.parametrize(
    ("discordant_fraction", "effect"), [(0.1, 0.0415), (0.2, 0.0588)], ids=["10 %", "20 %"]
)
def test_vqa_rads_451_questions_can_show_four_to_six_points(discordant_fraction, effect):
    # Connor by hand: effect * sqrt(451) = 1.960 sqrt(D) + 0.8416 sqrt(D - effect^2).
    found = minimal_detectable_effect(451, discordant_fraction)
    needed = 1.959964 * math.sqrt(discordant_fraction)
    needed += 0.841621 * math.sqrt(discordant_fraction - found**2)
    assert found * math.sqrt(451) == pytest.approx(needed, rel=1e-5)
    assert found == pytest.approx(effect, abs=0.0002)
    assert mcnemar_power(found, 451, discordant_fraction) == pytest.approx(0.8, abs=1e-6)
    assert mcnemar_power(-found, 451, discordant_fraction) == pytest.approx(0.8, abs=1e-6)


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
    found = 0
    for only_a, only_b, same in draws:
        a = [1] * only_a + [0] * only_b + [1] * same
        b = [0] * only_a + [1] * only_b + [1] * same
        found += mcnemar(a, b).mid_p_value < 0.05
    # 1,500 simulations have a standard error of 1.3 points.
    assert found / 1500 == pytest.approx(mcnemar_power(effect, 451, 0.15), abs=0.03)


@pytest.mark.parametrize(("num_runs", "seed_sd"), [(3, 0.03), (5, 0.03), (5, 0.01)])
def test_power_is_how_often_arms_over_seeds_differ(num_runs, seed_sd):
    # A question is settled for good by a threshold; runs shift all thresholds by their seed, so
    # seeds add what seed_sd says and single answers hardly flip.
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
        num_found += compare(a, b, one_each(400), num_samples=10).p_value < 0.05
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


def test_clustering_needs_two_pictures():
    with pytest.raises(UserError, match="one picture alone"):
        estimate_clustering([1, 0], ["x", "x"])
