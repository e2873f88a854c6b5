"""Paired tests and effect sizes: definitions, published numbers, SciPy, simulations."""

import math
from functools import partial

import numpy as np
import pytest
from scipy import stats

from medvqa.config.errors import UserError
from medvqa.evaluation.statistics import (
    holm,
    mcnemar,
    paired_effect,
    paired_permutation,
)

permutation = partial(paired_permutation, num_samples=10_000, seed=0)
effect = paired_effect


# Paired permutation test.


def test_permutation_by_hand():
    # Differences 1, 1, 1, 0: of the 8 sign patterns +++ and --- are as extreme.
    result = permutation([1, 1, 1, 0], [0, 0, 0, 0])
    assert (result.difference, result.p_value) == (0.75, 2 / 8)
    assert (result.num_clusters, result.is_exact) == (4, True)


def test_a_picture_flips_as_a_whole():
    # Sums 3 and 1: all of ++, --, of four patterns, are as extreme; questions alone gave 2 / 16.
    result = permutation([1, 1, 1, 1], [0, 0, 0, 0], ["x", "x", "x", "y"])
    assert (result.p_value, result.num_clusters) == (0.5, 2)
    assert permutation([1, 1, 1, 1], [0, 0, 0, 0]).p_value == 2 / 16


def test_permutation_is_two_sided_and_the_difference_has_a_sign():
    a, b = [0.9, 0.4, 0.8, 0.3, 0.7], [0.1, 0.5, 0.2, 0.4, 0.3]
    forward, backward = permutation(a, b), permutation(b, a)
    assert forward.p_value == backward.p_value
    assert forward.difference == -backward.difference == pytest.approx(0.32)


def test_permutation_equals_scipys():
    rng = np.random.default_rng(3)
    for _ in range(5):
        a, b = rng.integers(0, 4, size=(2, 9)) / 3
        reference = stats.permutation_test(
            (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=math.inf
        )
        assert permutation(a, b).p_value == pytest.approx(reference.pvalue)


def test_drawn_flips_come_close_to_all_flips():
    rng = np.random.default_rng(4)
    a, b = rng.normal(0.4, 1, 13), np.zeros(13)
    exact = permutation(a, b)
    drawn = permutation(a, b, num_samples=8000)
    assert (exact.is_exact, drawn.is_exact) == (True, False)
    # Three standard errors of a share of 8,000 draws.
    assert drawn.p_value == pytest.approx(exact.p_value, abs=0.015)
    assert drawn == permutation(a, b, num_samples=8000)


def test_a_drawn_p_value_counts_the_data_themselves_and_is_never_zero():
    # One pattern in 2**59 is as extreme; none of 999 draws is.
    assert permutation([1] * 60, [0] * 60, num_samples=999).p_value == 1 / 1000


def test_pictures_whose_differences_cancel_change_nothing():
    a, b = [1, 1, 1, 0], [0, 0, 0, 1]
    plain = permutation([1, 1], [0, 0], ["x", "y"])
    assert permutation(a, b, ["x", "y", "z", "z"]).p_value == plain.p_value
    assert permutation([1, 0], [1, 0]).p_value == 1


def test_equal_sums_in_another_order_are_a_tie():
    # 0.1 + 0.2 - 0.3 is 5.6e-17 and -0.1 - 0.2 + 0.3 is -5.6e-17: every pattern is a tie or larger.
    assert permutation([0.1, 0.2, 0.0], [0.0, 0.0, 0.3]).p_value == 1


def test_very_many_questions_fit_into_memory():
    rng = np.random.default_rng(5)
    a, b = rng.integers(0, 2, size=(2, 50_000))
    assert permutation(a, b, num_samples=200).p_value > 0.02


# McNemar's test.


def answers(only_a: int, only_b: int, both: int = 2) -> tuple[list[bool], list[bool]]:
    a = [True] * only_a + [False] * only_b + [True] * both
    b = [False] * only_a + [True] * only_b + [True] * both
    return a, b


def test_mcnemar_gives_the_published_p_values():
    # Fagerland, Lydersen and Laake 2013, table 1: 1 and 7 discordant of 21 children.
    children = mcnemar(*answers(1, 7, both=13))
    assert (children.num_questions, children.only_a, children.only_b) == (21, 1, 7)
    assert children.p_value == pytest.approx(0.0703, abs=5e-5)
    assert children.mid_p_value == pytest.approx(0.0391, abs=5e-5)
    # Armitage and Berry 1994, p. 127, by StatsDirect: 12 and 2 discordant media.
    assert mcnemar(*answers(12, 2)).p_value == pytest.approx(0.0129, abs=5e-5)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 1), (0, 6), (3, 3), (5, 9), (40, 22)])
def test_mcnemar_equals_the_binomial_test(only_a, only_b):
    result = mcnemar(*answers(only_a, only_b))
    num = only_a + only_b
    assert result.p_value == pytest.approx(stats.binomtest(only_a, num).pvalue)
    extremity = [abs(k - num / 2) - abs(only_a - num / 2) for k in range(num + 1)]
    weights = [1 if e > 0 else 0.5 if e == 0 else 0 for e in extremity]
    mid_p = sum(w * stats.binom.pmf(k, num, 0.5) for k, w in enumerate(weights))
    assert result.mid_p_value == pytest.approx(mid_p)


def test_mcnemar_without_and_with_very_many_discordant_answers():
    nothing = mcnemar(*answers(0, 0))
    assert (nothing.p_value, nothing.mid_p_value) == (1, 1)
    many = mcnemar(*answers(5100, 4900))
    assert many.p_value == pytest.approx(stats.binomtest(5100, 10_000).pvalue)


# Holm's adjustment.


def test_holm_by_hand_and_in_the_inputs_order():
    # Sorted .005 x 4, .01 x 3, .03 x 2 = .06, .04 x 1 = .04: raised to .06, as ranks may not swap.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_stops_at_one_and_leaves_a_single_test_alone():
    assert holm([0.6, 0.5, 0.9]) == [1, 1, 1]
    assert holm([0.03]) == [0.03]


# Effect sizes.


def test_effect_sizes_by_hand():
    # a has 8 of 10 right, b 5 of 10: 4 in a only, 1 in b only; differences vary by 4.1 / 9.
    a, b = [1] * 8 + [0] * 2, [1] * 4 + [0] * 4 + [1] + [0]
    result = effect(a, b)
    assert result.odds_ratio == 4
    assert result.cohens_dz == pytest.approx(0.3 / math.sqrt(4.1 / 9))
    # Cohen 1988, table 6.2.2: phi(.80) = 2.214 and phi(.50) = 1.571.
    assert result.cohens_h == pytest.approx(2.214 - 1.571, abs=1e-3)


def test_effects_that_are_not_defined_are_none():
    scores = effect([0.5, 0.2], [0.1, 0.3])
    assert (scores.cohens_h, scores.odds_ratio) == (None, None)
    alike = effect([1, 0], [1, 0])
    assert (alike.cohens_dz, alike.cohens_h, alike.odds_ratio) == (None, 0, None)
    assert effect([1, 0], [0, 0]).odds_ratio == math.inf
    assert effect([1], [0]).cohens_dz is None


# False positives where questions share pictures.


def test_only_the_clustered_permutation_keeps_its_level_where_questions_share_pictures():
    # Which of the two is right is a coin of the picture for most of its five questions.
    rng = np.random.default_rng(8)
    names = [str(i // 5) for i in range(300)]
    num_found, num_simulations = np.zeros(3), 400
    for _ in range(num_simulations):
        of_picture = np.repeat(rng.normal(size=(2, 60)), 5, axis=1)
        a, b = (of_picture + rng.normal(size=(2, 300)) > 0).astype(int)
        p_values = (
            permutation(a, b, names, num_samples=199).p_value,
            permutation(a, b, num_samples=199).p_value,
            mcnemar(a, b).mid_p_value,
        )
        num_found += [p <= 0.05 for p in p_values]
    clustered, naive, by_mcnemar = num_found / num_simulations
    assert 0.02 <= clustered <= 0.08
    assert min(naive, by_mcnemar) > 0.12


def test_mcnemar_and_permutation_keep_their_level_where_questions_are_independent():
    rng = np.random.default_rng(9)
    num_found, num_simulations = np.zeros(3), 1000
    for _ in range(num_simulations):
        a, b = rng.integers(0, 2, size=(2, 60))
        test = mcnemar(a, b)
        p_values = permutation(a, b, num_samples=199).p_value, test.p_value, test.mid_p_value
        num_found += [p <= 0.05 for p in p_values]
    by_permutation, exact, mid_p = num_found / num_simulations
    assert exact < mid_p
    assert 0.01 < exact <= 0.05
    assert 0.03 <= mid_p <= 0.065
    assert 0.025 <= by_permutation <= 0.065


@pytest.mark.parametrize("effect", [0.15, 0.25])
def test_the_permutation_finds_a_known_effect_as_often_as_theory_says(effect):
    # 60 pictures with five normal differences each: the mean of a picture has variance 1 + 1/5.
    rng = np.random.default_rng(14)
    names = [str(i // 5) for i in range(300)]
    num_found, num_simulations = 0, 400
    for _ in range(num_simulations):
        of_picture = np.repeat(rng.normal(effect, 1, size=60), 5)
        a = of_picture + rng.normal(size=300)
        num_found += permutation(a, np.zeros(300), names, num_samples=199).p_value <= 0.05
    shift = effect / math.sqrt(1.2 / 60)
    t = stats.nct(59, shift)
    power = t.sf(stats.t(59).ppf(0.975)) + t.cdf(stats.t(59).ppf(0.025))
    # 400 simulations have a standard error of at most 2.5 points.
    assert num_found / num_simulations == pytest.approx(power, abs=0.07)


# Mistakes.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: permutation([], []), "no values to average"),
        (lambda: permutation([1, 0], [1]), "different questions"),
        (lambda: permutation([1, 0], [1, 0], ["x"]), "2 values but 1 clusters"),
        (lambda: permutation([1, math.nan], [1, 0]), "1 of 4 scores are NaN"),
        (lambda: mcnemar([], []), "no values to average"),
        (lambda: mcnemar([True], [True, False]), "different questions"),
        (lambda: mcnemar([0.5], [1]), "right \\(1\\) or wrong"),
        (lambda: effect([1], [1, 0]), "different questions"),
        (lambda: holm([]), "no p-values"),
        (lambda: holm([0.1, math.nan]), "not nan"),
        (lambda: holm([0.1, 1.2]), "not 1.2"),
    ],
)
def test_a_mistake_is_one_clear_line(call, message):
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
