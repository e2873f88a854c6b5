"""How well a model's confidence tells its right answers from its wrong ones.

Confidence is a number in [0, 1] per answer, `is_right` a number in [0, 1], mostly 0 or 1.
docs/confidence.md cites the definitions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medvqa.config.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Values = Sequence[float] | Array

NUM_BINS = 15
COVERAGES = (0.5, 0.8, 0.9)


def answer_confidence(logprob_mean: float) -> float:
    """Return an answer's confidence: the geometric mean of its tokens' probabilities."""
    return min(1.0, math.exp(logprob_mean))


@dataclass(frozen=True)
class Bin:
    """Answers whose confidence lies in one interval: mean confidence, accuracy, count."""

    confidence: float
    accuracy: float
    count: int


def reliability(confidence: "Values", is_right: "Values", *, num_bins: int = NUM_BINS) -> list[Bin]:
    """Return the bins of a reliability diagram that hold answers; all have equal width."""
    c, right = _checked(confidence, is_right)
    places = bin_places(c, num_bins=num_bins)
    bins = [(c[places == place], right[places == place]) for place in range(num_bins)]
    return [
        Bin(float(own.mean()), float(accuracy.mean()), len(own))
        for own, accuracy in bins
        if len(own)
    ]


def bin_places(confidence: "Array", *, num_bins: int = NUM_BINS) -> "Array":
    """Return the bin of each confidence, from 0; 1 belongs to the last one."""
    import numpy as np

    places: Array = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    return places


def calibration_error(
    confidence: "Values", is_right: "Values", *, num_bins: int = NUM_BINS
) -> float:
    """Return the expected calibration error: mean distance of confidence and accuracy of a bin."""
    bins = reliability(confidence, is_right, num_bins=num_bins)
    distance = sum(own.count * abs(own.confidence - own.accuracy) for own in bins)
    return distance / sum(own.count for own in bins)


def risk_coverage(confidence: "Values", is_right: "Values") -> tuple[list[float], list[float]]:
    """Return coverage and error rate when the k most confident answers are given, k = 1 to n.

    Answers of equal confidence cannot be told apart: each counts with their mean error.
    """
    import numpy as np

    c, right = _checked(confidence, is_right)
    _, group = np.unique(-c, return_inverse=True)
    errors = np.bincount(group, 1 - right) / np.bincount(group)
    order = np.sort(group)
    counts = np.arange(1, len(c) + 1)
    risks = errors[order].cumsum() / counts
    return (counts / len(c)).tolist(), risks.tolist()


def area_under_risk_coverage(confidence: "Values", is_right: "Values") -> float:
    """Return the mean error rate over all coverages; lower is better."""
    _, risks = risk_coverage(confidence, is_right)
    return sum(risks) / len(risks)


def accuracy_at_coverage(confidence: "Values", is_right: "Values", coverage: float) -> float:
    """Return the accuracy of the most confident answers that make up at least this share."""
    coverages, risks = risk_coverage(confidence, is_right)
    return 1 - next(risk for own, risk in zip(coverages, risks, strict=True) if own >= coverage)


def auroc(confidence: "Values", is_right: "Values") -> float | None:
    """Return the chance that a right answer has more confidence than a wrong one.

    A tie counts half. None if all answers are right, or all wrong.
    """
    import numpy as np

    c, right = _checked(confidence, is_right)
    if not np.isin(right, (0, 1)).all():
        raise UserError("AUROC needs answers that are right or wrong, not in between")
    _, group, counts = np.unique(c, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[group]  # ties share their mean rank
    num_right = right.sum()
    num_wrong = len(right) - num_right
    if not num_right or not num_wrong:
        return None
    above = ranks[right == 1].sum() - num_right * (num_right + 1) / 2
    return float(above / (num_right * num_wrong))


def _checked(confidence: "Values", is_right: "Values") -> "tuple[Array, Array]":
    import numpy as np

    c, right = np.asarray(confidence, dtype=float), np.asarray(is_right, dtype=float)
    if c.shape != right.shape or c.ndim != 1 or not len(c):
        raise UserError("confidence needs one value per answer, and at least one answer")
    if not ((c >= 0) & (c <= 1)).all() or not ((right >= 0) & (right <= 1)).all():
        raise UserError("confidence and correctness must lie between 0 and 1")
    return c, right
