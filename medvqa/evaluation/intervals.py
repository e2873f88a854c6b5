"""Intervals of a mean in [0, 1], and Student's t, without SciPy: a run imports none."""

import math

from medvqa.evaluation.arrays import Array

Z = 1.959963985  # 97.5 % quantile of the normal distribution
SMALL_T = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def wilson(mean: float, size: float, *, is_corrected: bool) -> tuple[float, float]:
    """Return the 95 % interval of a mean in [0, 1] over an effective sample size.

    Source: Newcombe, Two-sided confidence intervals for the single proportion, 1998, methods 3
    and, with a correction for continuity, 4.
    """
    if is_corrected and size < 1:
        return 0.0, 1.0  # less than one answer excludes nothing
    step = float(is_corrected)

    def low(p: float) -> float:
        root = Z**2 - step * (2 + 1 / size) + 4 * p * (size * (1 - p) + step)
        reach = Z * math.sqrt(max(root, 0.0)) + step
        return max(0.0, (2 * size * p + Z**2 - reach) / (2 * (size + Z**2)))

    return min(low(mean), mean), max(1 - low(1 - mean), mean)


def effective_size(mean: float, variance: float, sums: Array, sizes: Array) -> float:
    """Return how many independent right-or-wrong answers are as precise as these pictures.

    Few pictures with a rare answer tell little of how answers agree within a picture. The design
    effect is therefore averaged with its largest value, which counts as one such picture. Where
    all answers are alike, each picture is one answer (Korn and Graubard, Confidence intervals for
    proportions with small expected number of positive counts, 1998).

    Args:
        mean: Over all questions.
        variance: Of the mean.
        sums: Of each picture's scores.
        sizes: Questions of each picture.
    """
    num_questions = float(sizes.sum())
    spread = mean * (1 - mean)
    if spread <= 0 or variance <= 0:
        return float(len(sizes))
    design_effect = variance * num_questions / spread
    largest = float((sizes**2).sum()) / num_questions
    num_telling = min(int((sums > 0).sum()), int((sums < sizes).sum()))
    return num_questions * (num_telling + 1) / (num_telling * design_effect + largest)


def t_quantile(degrees_of_freedom: int) -> float:
    """Return the 97.5 % quantile of t to three digits, without SciPy: a run imports none.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5, and its table 26.10.
    """
    if degrees_of_freedom < len(SMALL_T):
        return SMALL_T[degrees_of_freedom]
    z, n = Z, degrees_of_freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + math.fsum(term / n**power for power, term in enumerate(terms, start=1))
