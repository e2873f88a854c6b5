"""Confidence of one run or of an arm's runs -> measures with intervals clustered by picture.

docs/confidence.md derives the intervals; tests check them by simulation.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from medvqa.data.example import Prediction, Score
from medvqa.evaluation.arrays import Array
from medvqa.evaluation.comparison import arm_mean
from medvqa.evaluation.confidence import (
    COVERAGES,
    NUM_BINS,
    answer_confidence,
    bin_places,
    ranking,
    reliability,
    risk_coverage,
)
from medvqa.evaluation.intervals import Z, t_quantile, wilson
from medvqa.evaluation.score import GROUPS

MEASURES = {
    "confidence": "confidence",
    "overconfidence": "overconfidence",
    "calibration_error": "ECE",
    "risk_coverage_area": "AURC",
    **{f"accuracy_at_{100 * share:.0f}": f"EM at {share:.0%}" for share in COVERAGES},
    "confidence_auroc": "AUROC",
}
NUM_SIGNS = 1000  # random signs of the pictures, for the lower end of the calibration error
STRICTER = 1.4  # 2.74 standard errors: two ends at once must not fail in more than 5 %
MAX_GROUPS = 200  # of pictures that the jackknife leaves out at once
NUM_POINTS = 101  # of a stored risk-coverage curve


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """How sure an arm's runs are of the same answers, and how rightly.

    Attributes:
        confidence: Each answer's confidence as (runs, questions), in [0, 1].
        is_right: In the same shape.
        clusters: Picture(s) of each question.
    """

    confidence: Array
    is_right: Array
    clusters: Sequence[str]

    def measures(self) -> dict[str, Score]:
        """Return the measures of `MEASURES`; empty with fewer than two pictures.

        The AUROC is absent where all answers are right, or all wrong.
        """
        if len(set(self.clusters)) < 2:
            return {}
        gaps = self.confidence - self.is_right
        return {
            "confidence": arm_mean(self.confidence, self.clusters, bounds=(0, 1)).score,
            "overconfidence": arm_mean(gaps, self.clusters, bounds=(-1, 1)).score,
            "calibration_error": self._calibration_error(gaps),
            **self._ranking(),
        }

    def curves(self) -> dict[str, Any]:
        """Return what the diagrams show: the bins of all runs together, and the mean curve."""
        import numpy as np

        bins = reliability(self.confidence.ravel(), self.is_right.ravel())
        risks = np.mean([risk_coverage(c, y) for c, y, _ in self._surest_first()], axis=0)
        places = np.unique(np.linspace(0, len(risks) - 1, NUM_POINTS).astype(int))
        return {
            "bins": [asdict(own) for own in bins],
            "coverage": ((places + 1) / len(risks)).tolist(),
            "risk": risks[places].tolist(),
        }

    def _surest_first(self) -> list[tuple[Array, Array, Array]]:
        """Return each run's falling confidences, what is right, and each picture's number."""
        import numpy as np

        _, of_picture = np.unique(self.clusters, return_inverse=True)
        order = np.argsort(-self.confidence, axis=1, kind="stable")
        return [
            (c[own], y[own], of_picture[own])
            for c, y, own in zip(self.confidence, self.is_right, order, strict=True)
        ]

    def _calibration_error(self, gaps: Array) -> Score:
        """Return the runs' mean calibration error with an interval that is valid near 0, too.

        The error is a norm of the bins' gaps. Its estimate is a mean of gaps, each with its bin's
        sign: that gives the upper end. By the triangle inequality the estimate exceeds the truth by
        at most the norm of the bins' noise. The noise's 97.5 % quantile gives the lower end. The
        error is never below the size of the overconfidence, which may give a higher lower end.
        """
        import numpy as np

        places = [bin_places(row) for row in self.confidence]
        sums = [np.bincount(p, g, NUM_BINS) for p, g in zip(places, gaps, strict=True)]
        signed = np.array([np.sign(s)[p] * g for s, p, g in zip(sums, places, gaps, strict=True)])
        score = arm_mean(signed, self.clusters).score
        whole = arm_mean(gaps, self.clusters).score
        least = abs(whole.mean) - STRICTER * (whole.high - whole.mean)
        names, of_picture = np.unique(self.clusters, return_inverse=True)
        num_pictures, num_questions = len(names), len(self.clusters)
        share = np.bincount(of_picture)[:, None] / num_questions
        noise = np.zeros(NUM_SIGNS)
        signs = np.random.default_rng(0).choice((-1.0, 1.0), (NUM_SIGNS, num_pictures))
        for place, gap, total in zip(places, gaps, sums, strict=True):
            flat = np.bincount(of_picture * NUM_BINS + place, gap, num_pictures * NUM_BINS)
            residuals = flat.reshape(num_pictures, NUM_BINS) - share * total
            noise += np.abs(signs @ residuals).sum(axis=1) / num_questions / len(gaps)
        inflation = math.sqrt(num_pictures / (num_pictures - 1))
        noise_quantile = float(np.quantile(noise, 0.975)) * inflation
        return Score(
            mean=score.mean,
            low=max(0.0, min(score.low, score.mean - noise_quantile), least),
            high=min(1.0, score.high),
            num_examples=num_questions,
        )

    def _ranking(self) -> dict[str, Score]:
        """Return area, accuracies at coverages and AUROC, with intervals by a jackknife.

        At most `MAX_GROUPS` groups of pictures are left out in turn (Kott, 2001). Runs add the
        variance of their own values.
        """
        import numpy as np

        num_pictures = len(set(self.clusters))
        num_groups = min(num_pictures, MAX_GROUPS)
        rows = [(c, y, picture % num_groups) for c, y, picture in self._surest_first()]
        whole = [ranking(c, y) for c, y, _ in rows]
        parts = [
            [ranking(c[group != left_out], y[group != left_out]) for c, y, group in rows]
            for left_out in range(num_groups)
        ]
        scores = {}
        for name in whole[0]:
            if not all(name in own for row in (whole, *parts) for own in row):
                continue
            values = np.array([own[name] for own in whole])
            means = np.array([np.mean([own[name] for own in row]) for row in parts])
            half = t_quantile(num_groups - 1) * math.sqrt(
                (num_groups - 1) / num_groups * ((means - means.mean()) ** 2).sum()
            )
            if len(values) > 1:
                seeds = t_quantile(len(values) - 1) * math.sqrt(values.var(ddof=1) / len(values))
                half = math.hypot(half, seeds)
            mean = float(values.mean())
            spread = mean * (1 - mean)
            size = spread * (Z / half) ** 2 if spread and half else float(num_pictures)
            low, high = wilson(mean, size, is_corrected=False)
            scores[name] = Score(mean=mean, low=low, high=high, num_examples=len(self.clusters))
        return scores


def of_predictions(
    predictions: Sequence[Prediction], is_right: Sequence[bool]
) -> dict[str, Confidence]:
    """Return each group's confidence; empty where an answer has no log-probability."""
    import numpy as np

    if any(prediction.logprob_mean is None for prediction in predictions):
        return {}
    groups = {}
    for name in GROUPS:
        own = [
            (answer_confidence(p.logprob_mean or 0.0), float(right), p.cluster or p.id)
            for p, right in zip(predictions, is_right, strict=True)
            if name in ("overall", p.answer_type)
        ]
        if own:
            confidence, right, clusters = zip(*own, strict=True)
            groups[name] = Confidence(
                confidence=np.array([confidence]), is_right=np.array([right]), clusters=clusters
            )
    return groups
