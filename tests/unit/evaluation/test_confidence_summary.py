"""Intervals of the confidence measures hold the truth as often as they say, pictures clustered."""

import numpy as np
import pytest
from scipy.stats import norm

from medvqa.data.example import Prediction
from medvqa.evaluation.confidence import calibration_error, ranking
from medvqa.evaluation.confidence_summary import MEASURES, Confidence, of_predictions
from medvqa.evaluation.figure import draw_confidence

PER_PICTURE = 4


def draw(rng, num_pictures, sharpness, lift=0.0):
    """Return confidence, right or wrong, and the chance to be right; pictures share both.

    Log-odds of the confidence are those of the chance, times `sharpness`, plus `lift`.
    """
    shape = (num_pictures, PER_PICTURE)
    logit = 0.8 * rng.normal(size=(num_pictures, 1)) + rng.normal(size=shape) + 0.5
    chance = 1 / (1 + np.exp(-logit))
    luck = np.sqrt(0.3) * rng.normal(size=(num_pictures, 1)) + np.sqrt(0.7) * rng.normal(size=shape)
    confidence = 1 / (1 + np.exp(-logit * sharpness - lift))
    right = (norm.cdf(luck) < chance).astype(float)
    return confidence.ravel(), right.ravel(), chance.ravel()


def clusters(num_pictures):
    return [str(n) for n in range(num_pictures) for _ in range(PER_PICTURE)]


def test_intervals_take_the_picture_as_the_unit():
    rng = np.random.default_rng(2)
    confidence, right = rng.random(100), (rng.random(100) < 0.6).astype(float)

    def widths(copies):
        rows = [np.repeat(values, copies)[None] for values in (confidence, right)]
        names = [str(n) for n in range(100) for _ in range(copies)]
        measured = Confidence(confidence=rows[0], is_right=rows[1], clusters=names).measures()
        return {name: measured[name].high - measured[name].low for name in MEASURES}

    once, five_times = widths(1), widths(5)
    for name in ("calibration_error", "confidence_auroc", "risk_coverage_area", "overconfidence"):
        assert five_times[name] == pytest.approx(once[name], rel=0.05)


def test_seeds_that_disagree_widen_an_arms_intervals():
    rng = np.random.default_rng(3)
    confidence, right, _ = draw(rng, 100, 1.0)

    def width(name, *sharpness):
        rows = np.array([1 / (1 + (1 / confidence - 1) ** s) for s in sharpness])
        arm = Confidence(
            confidence=rows, is_right=np.array([right] * len(rows)), clusters=clusters(100)
        )
        score = arm.measures()[name]
        return score.high - score.low

    assert width("calibration_error", 1, 2, 5) > width("calibration_error", 2, 2, 2)
    assert width("overconfidence", 1, 2, 5) > width("overconfidence", 2, 2, 2)


@pytest.mark.parametrize("digits", [9, 1])
def test_measures_are_those_of_the_plain_functions_with_and_without_ties(digits):
    confidence, right, _ = draw(np.random.default_rng(4), 30, 1.0)
    confidence = confidence.round(digits)
    measured = Confidence(
        confidence=confidence[None], is_right=right[None], clusters=clusters(30)
    ).measures()
    assert measured["calibration_error"].mean == pytest.approx(calibration_error(confidence, right))
    order = np.argsort(-confidence, kind="stable")
    for name, value in ranking(confidence[order], right[order]).items():
        assert measured[name].mean == pytest.approx(value)
    assert list(measured) == list(MEASURES)


def prediction(number, logprob):
    return Prediction(
        id=str(number),
        question="?",
        references=("yes",),
        prediction="yes",
        answer_type="closed" if number % 2 else "open",
        source="s",
        split="test",
        cluster=f"picture {number // 2}",
        logprob_mean=logprob,
    )


def test_answers_without_log_probabilities_have_no_confidence():
    known = [prediction(n, -0.1 * n) for n in range(4)]
    groups = of_predictions(known, [True, False, True, False])
    assert {name: own.confidence.shape for name, own in groups.items()} == {
        "overall": (1, 4), "open": (1, 2), "closed": (1, 2),
    }  # fmt: skip
    assert of_predictions([*known, prediction(4, None)], [True] * 5) == {}


def test_one_class_of_answers_has_no_auroc_and_one_picture_no_measure():
    groups = of_predictions([prediction(n, -0.1 * n) for n in range(4)], [True] * 4)
    assert "confidence_auroc" not in groups["overall"].measures()
    assert of_predictions([prediction(0, -0.1)], [True])["overall"].measures() == {}


def test_the_diagrams_show_every_bin_and_the_whole_curve():
    confidence, right, _ = draw(np.random.default_rng(5), 30, 1.0)
    arm = Confidence(confidence=confidence[None], is_right=right[None], clusters=clusters(30))
    curves = arm.curves()
    assert sum(one["count"] for one in curves["bins"]) == 120
    assert (curves["coverage"][-1], curves["risk"][-1]) == (1, pytest.approx(1 - right.mean()))
    left, area = draw_confidence({"final": curves}).axes
    assert len(left.lines[1].get_xdata()) == len(curves["bins"])
    assert list(area.lines[0].get_ydata()) == curves["risk"]
