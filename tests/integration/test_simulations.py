"""Simulated studies: intervals cover the truth, and tests find it, as often as stated."""

import math

import numpy as np
import pytest

from benchmarks.false_positives import USED, analysed, simulate, studies
from medvqa.evaluation.calibration import (
    calibrate,
    picture_losses,
    scale,
)
from medvqa.evaluation.comparison import arm_mean, run_mean
from medvqa.evaluation.confidence import calibration_error, ranking
from medvqa.evaluation.confidence_summary import Confidence
from tests.unit.evaluation.test_calibration import DELTA, MAX_ERROR, simulated
from tests.unit.evaluation.test_comparison import compare
from tests.unit.evaluation.test_confidence_summary import clusters, draw


@pytest.mark.parametrize("paired", [False, True])
def test_studies_without_an_effect_show_one_in_at_most_one_of_twenty(paired):
    # Four alike arms, three seeds with a standard deviation of 5 points, Holm over six pairs.
    cell = {"seeds": 3.0, "paired": float(paired), "sd": 5.0, "pictures": 62.0}
    y = studies(np.random.default_rng(10), cell, 500)
    results = analysed(y, paired=paired)
    rates = {name: (size >= half).any(axis=1).mean() for name, (size, half) in results.items()}
    assert rates[USED] <= 0.07 < rates["one Satterthwaite df (before)"]


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


# 95 % nominal; 400 simulations have a standard error of 1.1 points.


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
    assert coverage(num_runs, **model) >= 0.92


def test_one_seed_covers_new_questions_only():
    model = {"pictures": 0.3, "flips": 0.3}
    assert 0.92 <= coverage(1, seeds=0, **model) <= 0.98
    assert coverage(1, seeds=0.1, **model) < 0.6


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.5, 0.98])
@pytest.mark.parametrize(
    ("pictures", "questions", "correlation"),
    [(30, 1, 0), (30, 4, 0.8), (62, 7, 0.8), (315, 2, 0.3)],
)
def test_the_interval_of_a_run_covers_rare_and_common_answers(
    rate, pictures, questions, correlation
):
    rng = np.random.default_rng(20)
    names = np.repeat(np.arange(pictures), questions).astype(str).tolist()
    size = (1 - correlation) / correlation if correlation else 1e6
    covered, num_simulations = 0, 400
    for _ in range(num_simulations):
        chance = rng.beta(rate * size, (1 - rate) * size, size=(pictures, 1))
        values = (rng.random((pictures, questions)) < chance).astype(float).ravel()
        score = run_mean(values, names)
        covered += score.low <= rate <= score.high
    assert covered / num_simulations >= 0.93


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


@pytest.mark.parametrize(("seeds", "paired", "sd"), [(3, 1, 5), (5, 0, 5)])
def test_a_true_difference_of_that_size_is_found_four_times_in_five(seeds, paired, sd):
    names = ("seeds", "paired", "sd", "pictures")
    cell = dict(zip(names, map(float, (seeds, paired, sd, 62)), strict=True))
    result = simulate(cell, 1600)
    # 2,400 pairs in 800 studies have a standard error of about 1.2 points.
    assert 0.75 <= result["power"][USED] <= 0.85


NUM_STUDIES = 120


@pytest.mark.parametrize(("sharpness", "lift"), [(1.0, 0), (2.5, 0), (1.0, 1)])
def test_intervals_hold_the_truth(sharpness, lift):
    rng = np.random.default_rng(1)
    confidence, right, chance = draw(rng, 50_000, sharpness, lift)
    order = np.argsort(-confidence)
    by_chance = ranking(confidence[order], chance[order])
    truth = {
        "overconfidence": (confidence - chance).mean(),
        "calibration_error": calibration_error(confidence, chance),
        "risk_coverage_area": by_chance["risk_coverage_area"],
        "accuracy_at_80": by_chance["accuracy_at_80"],
        "confidence_auroc": ranking(confidence[order], right[order])["confidence_auroc"],
    }
    hits = dict.fromkeys(truth, 0)
    for _ in range(NUM_STUDIES):
        confidence, right, _ = draw(rng, 40, sharpness, lift)
        study = Confidence(confidence=confidence[None], is_right=right[None], clusters=clusters(40))
        measured = study.measures()
        for name in truth:
            # A calibrated model's error is 0 up to what 50,000 pictures leave.
            hits[name] += measured[name].low <= truth[name] + 0.003 <= measured[name].high + 0.003
    # At 95 % the chance of fewer is below 1 in 500; the calibration error may hold more.
    assert {name: n / NUM_STUDIES for name, n in hits.items() if n < 0.88 * NUM_STUDIES} == {}


def true_errors(population):
    """Return a function: a calibration's error among answered questions, averaged over pictures."""
    confidence = np.array([answer.confidence for answer in population])
    is_wrong = np.array([not answer.is_right for answer in population])
    picture = np.array([int(answer.cluster) for answer in population])

    def error(calibration):
        if calibration.threshold is None:
            return 0.0
        lowest = scale(calibration.threshold, 1 / calibration.temperature)
        given = confidence >= lowest
        counts = np.bincount(picture[given])
        return (
            np.bincount(picture[given], is_wrong[given])[counts > 0] / counts[counts > 0]
        ).mean()

    return error


def test_the_bound_fails_in_at_most_a_share_delta_of_200_simulated_splits():
    rng = np.random.default_rng(0)
    true_error = true_errors(simulated(rng, 8000, sharpness=2.0))
    violations, answered = 0, 0
    for _ in range(200):
        sample = simulated(rng, 320, sharpness=2.0)
        result = calibrate(sample, max_error=MAX_ERROR, delta=DELTA)
        violations += true_error(result) > MAX_ERROR
        answered += result.threshold is not None
    assert violations <= 200 * DELTA + 3 * math.sqrt(200 * DELTA * (1 - DELTA))
    assert answered > 100  # the bound does not hold merely because nothing is answered


def test_without_the_test_the_bound_would_fail():
    """Taking the lowest threshold with a good observed error fails far more often than delta."""
    rng = np.random.default_rng(1)
    population = simulated(rng, 8000)
    candidates = np.linspace(0.3, 0.95, 14)
    naive = 0
    for _ in range(100):
        sample = simulated(rng, 120)
        errors = {
            c: np.mean(picture_losses([a for a in sample if a.confidence >= c]) or [1])
            for c in candidates
        }
        chosen = min((c for c in candidates if errors[c] <= MAX_ERROR), default=1.0)
        losses = picture_losses([a for a in population if a.confidence >= chosen])
        naive += bool(losses) and np.mean(losses) > MAX_ERROR
    assert naive > 2 * 100 * DELTA
