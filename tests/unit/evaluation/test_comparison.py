"""Arms over seeds: textbook formulas, SciPy, and simulations of coverage, errors and power."""

import math
from functools import partial

import numpy as np
import pytest
from scipy import stats

from medvqa.config.errors import UserError
from medvqa.evaluation.comparison import arm_mean, compare_arms

compare = partial(compare_arms, seeds_are_paired=False)


def one_each(num_questions: int) -> list[str]:
    return [str(i) for i in range(num_questions)]


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
    assert (result.variance_of, result.num_seeds) == ("questions", (1, 1))
    assert (result.num_clusters, result.difference.num_examples) == (3, 4)


def test_one_seed_in_only_one_arm_does_not_count_as_seed_variance():
    rng = np.random.default_rng(0)
    result = compare(rng.random((3, 20)), rng.random((1, 20)), one_each(20))
    assert (result.variance_of, result.num_seeds) == ("questions", (3, 1))


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
        return (reach / stats.t.ppf(0.975, result.degrees_of_freedom)) ** 2

    rng = np.random.default_rng(4)
    for _ in range(20):
        a, b = rng.normal(size=(2, 3, 40))
        over_seeds = (a.mean(1).var(ddof=1) + b.mean(1).var(ddof=1)) / 3
        over_pictures = (a.mean(0) - b.mean(0)).var(ddof=1) / 40
        crossed = variance(compare(a, b, one_each(40)))
        assert crossed >= max(over_seeds, over_pictures) * (1 - 1e-9)


def test_what_a_seed_adds_to_both_arms_cancels_where_seeds_are_paired():
    rng = np.random.default_rng(6)
    seeds, noise = np.repeat(rng.normal(size=(5, 1)), 30, axis=1), 0.01 * rng.normal(size=(5, 30))
    paired = compare(seeds + noise, seeds, one_each(30), seeds_are_paired=True)
    unpaired = compare(seeds + noise, seeds, one_each(30))
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
    """Return how often the interval holds the true difference of 0.05."""
    rng = np.random.default_rng(8)
    names = [str(i // 4) for i in range(240)]
    covered = 0
    for _ in range(num_simulations):
        a, b = simulated_arms(rng, num_runs=num_runs, effect=0.05, **model)
        interval = compare(a, b, names).difference
        covered += interval.low <= 0.05 <= interval.high
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
    assert 0.92 <= coverage(num_runs, **model) <= 0.985


def test_one_seed_covers_new_questions_only():
    model = {"pictures": 0.3, "flips": 0.3}
    assert 0.92 <= coverage(1, seeds=0, **model) <= 0.98
    assert coverage(1, seeds=0.1, **model) < 0.6


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


# One arm.


def test_one_arm_is_its_difference_from_nothing():
    rng = np.random.default_rng(15)
    scores, names = rng.random((4, 40)), [str(i // 4) for i in range(40)]
    difference = compare(scores, np.zeros((4, 40)), names, seeds_are_paired=True)
    result = arm_mean(scores, names)
    assert result.score == difference.difference
    assert (result.num_seeds, result.num_clusters) == (4, 10)
    assert result.variance_of == "questions and seeds"


def test_one_run_of_an_arm_speaks_of_questions_only():
    result = arm_mean([[1, 0, 0, 1]], ["x", "x", "y", "z"])
    assert (result.variance_of, result.num_seeds) == ("questions", 1)


def test_an_arms_interval_ends_where_scores_end():
    result = arm_mean([[1, 1, 1, 0]], one_each(4), bounds=(0, 1))
    assert (result.score.low, result.score.high) == (0, 1)
    unbounded = arm_mean([[1, 1, 1, 0]], one_each(4)).score
    assert unbounded.low < 0 < 1 < unbounded.high


@pytest.mark.parametrize("seeds", [0.1, 0.6], ids=["pictures dominate", "seeds dominate"])
def test_an_arms_interval_covers_new_trainings_on_new_pictures(seeds):
    # Answers are right where a latent score is positive; by symmetry half of them are.
    rng = np.random.default_rng(16)
    names = [str(i // 4) for i in range(240)]
    num_covered, num_simulations = 0, 400
    for _ in range(num_simulations):
        a, _ = simulated_arms(rng, num_runs=5, seeds=seeds, pictures=0.7, flips=0.7)
        score = arm_mean(a > 0, names, bounds=(0, 1)).score
        num_covered += score.low <= 0.5 <= score.high
    # 1,500 simulations gave 94 and 93 %; 400 have a standard error of 1.2 points.
    assert 0.90 <= num_covered / num_simulations <= 0.98
