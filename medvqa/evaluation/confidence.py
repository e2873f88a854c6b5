"""How well a model's confidence tells its right answers from its wrong ones.

Confidence is a number in [0, 1] per answer, `is_right` a number in [0, 1], mostly 0 or 1.
docs/confidence.md cites the definitions.
"""

import math
from dataclasses import dataclass
from typing import Any

from medvqa.evaluation.arrays import Array, Values

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


def bin_places(confidence: Array) -> Array:
    """Return the bin of each confidence, from 0; 1 belongs to the last one."""
    import numpy as np

    return np.asarray(np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1))


def reliability(confidence: Values, is_right: Values) -> list[Bin]:
    """Return the bins of a reliability diagram that hold answers; all have equal width."""
    import numpy as np

    c, right = np.asarray(confidence), np.asarray(is_right)
    places = bin_places(c)
    return [
        Bin(float(c[places == place].mean()), float(right[places == place].mean()), int(count))
        for place, count in enumerate(np.bincount(places))
        if count
    ]


def calibration_error(confidence: Values, is_right: Values) -> float:
    """Return the expected calibration error: mean distance of confidence and accuracy of a bin."""
    bins = reliability(confidence, is_right)
    distance = sum(own.count * abs(own.confidence - own.accuracy) for own in bins)
    return distance / sum(own.count for own in bins)


def risk_coverage(confidence: Array, is_right: Array) -> Array:
    """Return the error rate when the k most confident answers are given, k = 1 to n.

    Confidences fall. Answers of equal confidence cannot be told apart: each counts with their mean
    error.
    """
    import numpy as np

    sizes, wrong = _ties(confidence, is_right)
    errors: Array = np.repeat(wrong / sizes, sizes)
    return errors.cumsum() / np.arange(1, len(confidence) + 1)


def ranking(confidence: Array, is_right: Array) -> dict[str, float]:
    """Return what depends on the order of the confidences alone; they fall.

    `risk_coverage_area` is the mean error rate over all coverages. `accuracy_at_80` is the accuracy
    of the most confident 80 % at least. `confidence_auroc` is the chance that a right answer has
    more confidence than a wrong one; a tie counts half. It is absent where all answers are right,
    or all are wrong.
    """
    count = len(confidence)
    risks = risk_coverage(confidence, is_right)
    values = {"risk_coverage_area": float(risks.mean())}
    for share in COVERAGES:
        place = math.ceil(share * count - 1e-9) - 1
        values[f"accuracy_at_{100 * share:.0f}"] = float(1 - risks[place])
    sizes, wrong = _ties(confidence, is_right)
    num_wrong = wrong.sum()
    if 0 < num_wrong < count:
        above = (sizes - wrong) * (num_wrong - wrong.cumsum() + wrong / 2)
        values["confidence_auroc"] = float(above.sum() / num_wrong / (count - num_wrong))
    return values


def _ties(confidence: Array, is_right: Array) -> tuple[Any, Array]:
    """Return size and sum of errors of each group of equal confidences."""
    import numpy as np

    starts = np.flatnonzero(np.diff(confidence, prepend=np.inf))
    return np.diff(starts, append=len(confidence)), np.add.reduceat(1 - is_right, starts)
