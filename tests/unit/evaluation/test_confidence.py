"""Measures of confidence agree with scikit-learn, and with brute force where it has none."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

from medvqa.evaluation.confidence import (
    calibration_error,
    ranking,
    reliability,
    risk_coverage,
)


@pytest.fixture(params=range(5))
def answers(request):
    """Falling confidences with ties, and right or wrong."""
    rng = np.random.default_rng(request.param)
    confidence = -np.sort(-rng.choice([*np.linspace(0, 1, 12), 0.501, 0.502], 200))
    return confidence, (rng.random(200) < confidence**2).astype(int)


def test_bins_are_those_of_scikit_learn(answers):
    confidence, right = answers
    shares, means = calibration_curve(right, np.nextafter(confidence, 1), n_bins=15)
    bins = reliability(confidence, right)
    assert np.allclose([own.accuracy for own in bins], shares)
    assert np.allclose([own.confidence for own in bins], means)
    assert sum(own.count for own in bins) == 200


def test_auroc_is_that_of_scikit_learn_and_absent_without_two_classes(answers):
    confidence, right = answers
    expected = pytest.approx(roc_auc_score(right, confidence))
    assert ranking(confidence, right)["confidence_auroc"] == expected
    assert "confidence_auroc" not in ranking(np.array([0.9, 0.1]), np.array([1, 1]))


def test_the_calibration_error_is_the_distance_that_was_put_in():
    rng = np.random.default_rng(0)
    confidence = rng.choice([0.55, 0.75, 0.95], 60_000)
    right = rng.random(60_000) < confidence - 0.2
    assert calibration_error(confidence, right) == pytest.approx(0.2, abs=0.01)
    assert calibration_error(confidence, rng.random(60_000) < confidence) < 0.01


def test_risk_and_coverage_are_the_mean_over_all_orders_of_ties(answers):
    confidence, right = answers
    rng = np.random.default_rng(1)
    risks = []
    for _ in range(2000):
        shuffled = rng.permutation(200)
        order = shuffled[np.argsort(-confidence[shuffled], kind="stable")]
        risks.append((1 - right[order]).cumsum() / np.arange(1, 201))
    risk = risk_coverage(confidence, right)
    assert np.abs(np.mean(risks, axis=0) - risk).max() < 0.05
    assert risk[-1] == pytest.approx(1 - right.mean())
    values = ranking(confidence, right)
    assert values["risk_coverage_area"] == pytest.approx(np.mean(risk))
    assert values["accuracy_at_80"] == pytest.approx(1 - risk[159])
