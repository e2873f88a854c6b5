"""Arms over seeds: textbook formulas, SciPy, and simulations of coverage, errors and power."""

import itertools
import json
import math
from functools import partial

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from benchmarks.false_positives import LEVEL, USED, analysed, studies
from medvqa.config.errors import UserError
from medvqa.evaluation.comparison import arm_mean, compare_arms, run_mean
from medvqa.evaluation.components import reach
from medvqa.evaluation.intervals import t_quantile

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


# The components of the variance.


def test_two_arms_differ_by_the_pooled_t_of_their_seeds_where_pictures_agree():
    rng = np.random.default_rng(1)
    a, b = (np.repeat(rng.normal(size=(n, 1)), 30, axis=1) for n in (3, 5))
    result = compare(a, b, one_each(30))
    expected = stats.ttest_ind(a[:, 0], b[:, 0])
    assert result.p_value == pytest.approx(expected.pvalue)
    assert result.components[0].degrees_of_freedom == 6


def test_paired_arms_differ_by_the_paired_t_of_their_seeds_where_pictures_agree():
    rng = np.random.default_rng(2)
    a, b = (np.repeat(rng.normal(size=(4, 1)), 30, axis=1) for _ in range(2))
    result = compare(a, b, one_each(30), seeds_are_paired=True)
    assert result.p_value == pytest.approx(stats.ttest_rel(a[:, 0], b[:, 0]).pvalue)


def test_the_interval_is_banerjees_sum_of_squared_half_widths():
    rng = np.random.default_rng(3)
    seeds, pictures = 0.3 * rng.normal(size=(2, 4, 1)), rng.normal(size=(2, 1, 60))
    a, b = seeds + pictures + rng.normal(size=(2, 4, 60))
    result = compare(a, b, one_each(60))
    of_seeds, of_pictures = result.components
    assert (of_seeds.degrees_of_freedom, of_pictures.degrees_of_freedom) == (6, 59)
    squares = [c.variance * stats.t.ppf(0.975, c.degrees_of_freedom) ** 2
               for c in result.components]  # fmt: skip
    assert result.difference.high - result.difference.mean == pytest.approx(math.sqrt(sum(squares)))
    total = sum(c.unbiased for c in result.components)
    # Crossed random effects: (MS_seeds + MS_pictures - MS_residual) / cells, arm by arm.
    d = a.mean(0) - b.mean(0)
    flips = sum(
        ((x - x.mean(0) - x.mean(1, keepdims=True) + x.mean()) ** 2).sum() / (3 * 59) / x.size
        for x in (a, b)
    )
    by_seed = sum(x.mean(1).var(ddof=1) / 4 for x in (a, b))
    assert total == pytest.approx(by_seed + d.var(ddof=1) / 60 - flips)


def test_the_p_value_is_the_level_at_which_the_interval_ends_at_nothing():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(2, 4, 40)) + 0.3 * rng.normal(size=(2, 4, 1))
    result = compare(a + 0.4, b, one_each(40))
    assert reach(result.components, result.p_value) == pytest.approx(abs(result.difference.mean))
    assert (result.p_value < 0.05) == (result.difference.low > 0 or result.difference.high < 0)


def test_more_arms_tell_more_of_how_seeds_vary():
    rng = np.random.default_rng(5)
    arms = [np.repeat(rng.normal(size=(3, 1)), 20, axis=1) for _ in range(4)]
    others = [arm[:, 0].tolist() for arm in arms[2:]]
    for paired, freedom in ((False, 8), (True, 6)):
        result = compare(*arms[:2], one_each(20), seeds_are_paired=paired, others=others)
        assert result.components[0].degrees_of_freedom == freedom
        assert result.num_pooled == 4
        assert result.test == "t by component, seed variance of 4 arms"


def test_arms_whose_seeds_vary_unequally_are_not_pooled():
    rng = np.random.default_rng(6)
    a, b = (np.repeat(0.01 * rng.normal(size=(5, 1)), 20, axis=1) for _ in range(2))
    wild = (10 * rng.normal(size=5)).tolist()
    result = compare(a, b, one_each(20), others=[wild])
    assert result.num_pooled == 2
    assert [c.degrees_of_freedom for c in result.components] == [4, 4, 19]


def test_an_arm_that_never_varies_does_not_lower_the_pooled_variance():
    rng = np.random.default_rng(7)
    a, b = (np.repeat(rng.normal(size=(3, 1)), 20, axis=1) for _ in range(2))
    alone = compare(a, b, one_each(20))
    assert compare(a, b, one_each(20), others=[[0.5, 0.5, 0.5]]) == alone


def test_a_gain_is_excluded_by_the_one_sided_test_of_the_same_components():
    rng = np.random.default_rng(8)
    a, b = 0.02 * rng.normal(size=(2, 5, 50))
    result = compare(a, b, one_each(50))
    assert result.p_below(0.2) < 0.001 < 0.999 < result.p_below(-0.2)
    assert result.p_below(result.difference.mean) == pytest.approx(0.5)


def test_the_preregistered_method_gives_satterthwaites_degrees_of_freedom():
    rng = np.random.default_rng(9)
    d = 0.3 * rng.normal(size=(4, 1)) + rng.normal(size=(1, 60)) + rng.normal(size=(4, 60))
    result = compare(d, np.zeros_like(d), one_each(60), seeds_are_paired=True,
                     method="satterthwaite")  # fmt: skip
    seeds, pictures = d.mean(1).var(ddof=1) / 4, d.mean(0).var(ddof=1) / 60
    freedom = (seeds + pictures) ** 2 / (seeds**2 / 3 + pictures**2 / 59)
    assert result.components[0].degrees_of_freedom == pytest.approx(freedom)


@pytest.mark.parametrize("paired", [False, True])
def test_the_simulation_analyses_a_study_as_the_report_does(paired):
    cell = {"seeds": 3.0, "paired": float(paired), "sd": 3.0, "pictures": 30.0}
    y = studies(np.random.default_rng(11), cell, 20)
    size, half = analysed(y, paired=paired)[USED]
    names = [str(i // 4) for i in range(120)]
    for number, arms in enumerate(np.repeat(y, 4, axis=3)):
        others = [arm.mean(axis=1).tolist() for arm in arms[2:]]
        result = compare(*arms[:2], names, seeds_are_paired=paired, others=others)
        assert abs(result.difference.mean) == pytest.approx(size[number, 0], abs=1e-12)
        assert reach(result.components, LEVEL) == pytest.approx(half[number, 0])


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
    result = arm_mean([[1, 0, 0, 1]], ["x", "x", "y", "z"], bounds=(0, 1))
    assert (result.variance_of, result.num_seeds) == ("questions", 1)
    assert result.score == run_mean([1, 0, 0, 1], ["x", "x", "y", "z"])


# One run.


@pytest.mark.parametrize("right", [0, 1, 20, 40])
def test_where_pictures_have_one_question_the_interval_is_wilsons_with_a_correction(right):
    values = [1.0] * right + [0.0] * (40 - right)
    score = run_mean(values, one_each(40))
    # t's quantile in place of z's, n - 1 in place of n: the effective sample size.
    size = (39 if 0 < right < 40 else 40) * (stats.norm.isf(0.025) / stats.t(39).isf(0.025)) ** 2
    if 0 < right < 40:  # one more picture, whose design effect is 1, not 40/39
        size *= (min(right, 40 - right) + 1) / (min(right, 40 - right) + 39 / 40)
    expected = proportion_confint(right / 40 * size, size, method="wilson")
    assert score.low <= expected[0] + 1e-9 and score.high >= expected[1] - 1e-9
    assert 0 < expected[0] - score.low + score.high - expected[1] < 1.2 / size
    by_hand = newcombe(right / 40, size)
    assert (score.low, score.high) == pytest.approx(by_hand, abs=1e-4)


def newcombe(p, n):
    """Return method 4 as the paper writes it (Newcombe, 1998)."""
    q, z = 1 - p, stats.norm.isf(0.025)
    below = z**2 - 2 - 1 / n + 4 * p * (n * q + 1)
    above = z**2 + 2 - 1 / n + 4 * p * (n * q - 1)
    low = (2 * n * p + z**2 - 1 - z * math.sqrt(below)) / (2 * (n + z**2))
    high = (2 * n * p + z**2 + 1 + z * math.sqrt(above)) / (2 * (n + z**2))
    return (low if p else 0.0), (high if q else 1.0)  # as the paper asks at both ends


def test_an_interval_never_excludes_its_mean_and_is_never_a_point():
    for pictures, right in itertools.product((2, 3, 30), (0, 1, 2)):
        score = run_mean([1.0] * right + [0.0] * (pictures - right), one_each(pictures))
        assert score.low <= score.mean <= score.high and score.low < score.high
    few = run_mean([1.0, 0.0, 1.0, 0.0], ["x", "x", "y", "y"])  # t with 1 degree of freedom
    assert (few.low, few.high) == (0, 1)


def test_questions_on_one_picture_count_as_one_where_they_agree():
    values = [1.0] * 20 + [0.0] * 20
    once = run_mean(values, one_each(40))
    four_times = run_mean(np.repeat(values, 4).tolist(), [str(i // 4) for i in range(160)])
    assert (once.low, once.high) == pytest.approx((four_times.low, four_times.high))


def test_one_picture_excludes_nothing_and_an_unbounded_score_is_not_cut():
    score = run_mean([1.0, 0.0], ["x", "x"])
    assert (score.mean, score.low, score.high) == (0.5, 0, 1)
    unbounded = run_mean([0.0, 0.1, -0.1], one_each(3), bounds=(-math.inf, math.inf))
    assert unbounded.low < 0 < unbounded.high


def test_the_interval_is_that_of_the_published_file_where_questions_are_independent(shared):
    place = shared / "reference" / "vqa_rad_qwen2_vl_2b"
    rows = [json.loads(line) for line in (place / "predictions.jsonl").read_text().splitlines()]
    published = json.loads((place / "metrics.json").read_text())["closed"]["ci95"]
    right = [float(r["prediction"] == r["reference"]) for r in rows if r["qtype"] == "closed"]
    score = run_mean(right, one_each(len(right)))
    assert score.mean == pytest.approx(published["point"])
    assert (score.low, score.high) == pytest.approx(
        (published["lower"], published["upper"]), abs=0.01
    )


@pytest.mark.parametrize("freedom", [1, 4, 9, 10, 29, 314])
def test_the_t_quantile_without_scipy_is_scipys(freedom):
    assert t_quantile(freedom) == pytest.approx(stats.t(freedom).ppf(0.975), abs=2e-3)
