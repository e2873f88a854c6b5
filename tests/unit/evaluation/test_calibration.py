"""Calibration: the bound on the error rate holds, and what is miscalibrated is repaired."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from benchmarks.confidence import results, unpacked
from medvqa.config.errors import UserError
from medvqa.evaluation.calibration import (
    ConfidentAnswer,
    calibrate,
    certified_threshold,
    fit_temperature,
    p_value,
    scale,
    split_by_picture,
)
from medvqa.tracking.record import read_json
from tests.conftest import ROOT

MAX_ERROR, DELTA = 0.2, 0.1


def simulated(rng, num_pictures, *, sharpness=1.0, questions=3):
    """Answers with known chances; a picture makes all of its questions easier or harder."""
    answers = []
    for picture in range(num_pictures):
        ease = rng.normal()
        for _ in range(rng.integers(1, questions + 1)):
            odds = 1.2 + ease + rng.normal()
            right = bool(rng.random() < 1 / (1 + math.exp(-odds)))
            confidence = 1 / (1 + math.exp(-odds * sharpness))
            answers.append(
                ConfidentAnswer(cluster=str(picture), confidence=confidence, is_right=right)
            )
    return answers


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_a_miscalibrated_model_gets_its_temperature_and_a_small_error(sharpness):
    rng = np.random.default_rng(2)
    answers = simulated(rng, 4000, sharpness=sharpness)
    assert fit_temperature(answers) == pytest.approx(sharpness, rel=0.12)
    result = calibrate(answers, max_error=0.3, delta=0.1)
    assert result.ece_after < 0.03
    if sharpness != 1:
        assert result.ece_before > 2 * result.ece_after


def test_pictures_of_another_kind_are_not_answered():
    rng = np.random.default_rng(3)
    result = calibrate(simulated(rng, 600), max_error=MAX_ERROR, delta=DELTA)
    own = np.mean([result.answers(a.confidence) for a in simulated(rng, 500)])
    unsure = [1 / (1 + math.exp(-rng.normal() * 0.3)) for _ in range(500)]
    other = np.mean([result.answers(confidence) for confidence in unsure])
    assert own > 0.4
    assert other < own / 4


def test_halves_share_no_picture_and_do_not_depend_on_the_order():
    answers = simulated(np.random.default_rng(4), 100)
    one, other = split_by_picture(answers, seed=0)
    assert not {a.cluster for a in one} & {a.cluster for a in other}
    assert len(one) + len(other) == len(answers)
    again, _ = split_by_picture(answers[::-1], seed=0)
    assert {a.cluster for a in again} == {a.cluster for a in one}
    assert {a.cluster for a in split_by_picture(answers, seed=1)[0]} != {a.cluster for a in one}


def test_p_values_are_valid_and_exact_for_right_and_wrong():
    assert p_value([0, 0, 1, 0], 0.3) == pytest.approx(binom.cdf(1, 4, 0.3))
    assert p_value([], 0.3) == p_value([0.5, 0.4], 0.3) == 1
    rng = np.random.default_rng(5)
    # At the edge of the null hypothesis, a p-value below 0.1 comes in at most 10 % of draws.
    draws = [p_value(list(rng.binomial(4, 0.2, 60) / 4), 0.2) for _ in range(1000)]
    assert np.mean(np.array(draws) <= 0.1) <= 0.1 + 3 * math.sqrt(0.09 / 1000)


def test_no_threshold_is_certified_for_a_model_that_guesses():
    rng = np.random.default_rng(6)
    guesses = [
        ConfidentAnswer(cluster=str(n), confidence=rng.random(), is_right=bool(n % 2))
        for n in range(400)
    ]
    assert certified_threshold(guesses, [0.1, 0.5, 0.9], max_error=0.2, delta=0.1) is None
    result = calibrate(guesses, max_error=0.2, delta=0.1)
    assert not result.answers(0.999999)


@pytest.mark.parametrize(("max_error", "delta"), [(0, 0.1), (1, 0.1), (0.1, 0), (0.1, 1.5)])
def test_bounds_must_be_shares(max_error, delta):
    with pytest.raises(UserError, match="between 0 and 1"):
        calibrate([], max_error=max_error, delta=delta)


def test_too_few_pictures_are_refused_however_many_questions():
    answers = [
        ConfidentAnswer(cluster=str(n % 10), confidence=0.5, is_right=True) for n in range(5000)
    ]
    with pytest.raises(
        UserError,
        match="at least 40 pictures, 20 in each half; the halves of this set have 5 and 5",
    ):
        calibrate(answers, max_error=0.1, delta=0.1)


def test_scaling_keeps_the_order_and_one_changes_nothing():
    values = [0.0, 0.1, 0.5, 0.9, 1.0]
    for temperature in (0.3, 1.0, 4.0):
        scaled = [scale(value, temperature) for value in values]
        assert scaled == sorted(scaled)
    assert scale(0.3, 1.0) == pytest.approx(0.3)


def test_no_picture_is_in_both_halves_even_where_questions_show_two():
    rng = np.random.default_rng(8)
    names = [f"p{n}" for n in range(200)]
    answers = [
        ConfidentAnswer(cluster="+".join(rng.choice(names, k, replace=False)), confidence=0.5,
                        is_right=True)
        for k in rng.choice([1, 2], 600, p=[0.85, 0.15])
    ]  # fmt: skip
    result = calibrate(answers, max_error=0.5, delta=0.1)
    fitted, tested = split_by_picture(answers, seed=0)
    assert result.num_left_out == 600 - len(fitted) - len(tested) > 0
    assert not {a.cluster for a in fitted} & {a.cluster for a in tested}


def test_pictures_that_a_question_joins_are_one_unit():
    answers = [
        ConfidentAnswer(cluster=cluster, confidence=0.5, is_right=True)
        for cluster in ("a", "a+b", "b", "b+c", "c", "d")
    ]
    for seed in range(40):
        halves = split_by_picture(answers, seed=seed)
        whole = max(halves, key=len)
        if len(whole) == 6:  # all pictures fell into one half
            assert len({a.cluster for a in whole}) == 2
            return
    raise AssertionError("no seed puts the pictures into one half")


def test_the_bound_and_the_temperature_hold_for_a_trained_models_answers():
    """A fast version of benchmarks/confidence.py, on the answers that it recorded."""
    record = read_json(ROOT / "benchmarks" / "results" / "confidence.json")
    answers = {name: unpacked(text) for name, text in record["answers"].items()}
    again = results(answers, num_calibrations=10)
    assert again["accuracy"] == record["results"]["accuracy"]
    for bound in again["bound"]:
        assert bound["violations"] <= bound["allowed"]
        assert bound["num_that_answer"] >= 8
    for repaired in again["temperature"]:
        assert repaired["temperature"] == pytest.approx(repaired["expected_temperature"], rel=0.1)
        assert repaired["ece_held_out_after"] < repaired["ece_held_out_before"]
    given = {name: own["answered"] for name, own in again["abstention"].items()}
    assert given["blank"] < given["shifted"] < given["test"]
