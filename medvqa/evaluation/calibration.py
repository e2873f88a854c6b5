"""Temperature and abstention threshold from held-out answers, with a bound on the error rate.

Learn-then-Test (Angelopoulos et al., arXiv 2110.01052) with the picture as the unit. The bound
holds with probability 1 - delta if calibration and later pictures are exchangeable: see
docs/confidence.md.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from medvqa.config.errors import UserError
from medvqa.evaluation.confidence import calibration_error

MIN_PICTURES = 20  # of each half
COVERAGES = tuple(share / 10 for share in range(10, 0, -1))  # the thresholds that are tested
MAX_LOG_TEMPERATURE = math.log(100)
CLIPPED = 1e-9  # a confidence of 0 or 1 has no log-odds


@dataclass(frozen=True, kw_only=True)
class ConfidentAnswer:
    """One answer with its raw confidence in [0, 1], whether it is right, and its picture(s).

    Several pictures are joined by "+".
    """

    cluster: str
    confidence: float
    is_right: bool


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The result; `threshold` is on the scaled confidence, None if no threshold is certified.

    Attributes:
        max_error: Bound on the error rate among answered questions, averaged over pictures.
        delta: Probability with which the bound may fail.
        num_fitted: Pictures that temperature and candidate thresholds come from.
        num_tested: Pictures that the threshold was tested on; pictures that questions show together
            count as one.
        num_left_out: Answers about pictures of both halves, which were not used.
        coverage: Share of the tested questions that are answered.
        error: Their observed error rate, averaged over pictures.
        ece_before: Expected calibration error on the tested pictures, without scaling.
        ece_after: The same with scaling.
    """

    temperature: float
    threshold: float | None
    max_error: float
    delta: float
    num_fitted: int
    num_tested: int
    num_left_out: int
    coverage: float
    error: float | None
    ece_before: float
    ece_after: float

    def scaled(self, confidence: float) -> float:
        """Return the calibrated confidence."""
        return scale(confidence, self.temperature)

    def answers(self, confidence: float) -> bool:
        """Return whether a question with this raw confidence is answered."""
        return self.threshold is not None and self.scaled(confidence) >= self.threshold


def scale(confidence: float, temperature: float) -> float:
    """Return the confidence with its log-odds divided by the temperature (Guo et al., 2017)."""
    clipped = min(max(confidence, CLIPPED), 1 - CLIPPED)
    return 1 / (1 + math.exp(-math.log(clipped / (1 - clipped)) / temperature))


def calibrate(
    answers: Sequence[ConfidentAnswer], *, max_error: float, delta: float, seed: int = 0
) -> Calibration:
    """Fit on one half of the pictures, and test thresholds on the other.

    Raises:
        UserError: If a bound is not between 0 and 1, or there are too few pictures.
    """
    for name, value in (("max error", max_error), ("delta", delta)):
        if not 0 < value < 1:
            raise UserError(f"{name} must lie between 0 and 1, got {value:g}")
    fitted, tested = split_by_picture(answers, seed=seed)
    counts = [len({answer.cluster for answer in half}) for half in (fitted, tested)]
    if min(counts) < MIN_PICTURES:
        raise UserError(
            f"calibration needs at least {2 * MIN_PICTURES} pictures, {MIN_PICTURES} in each half; "
            f"the halves of this set have {counts[0]} and {counts[1]}"
        )
    temperature = fit_temperature(fitted)
    ranked = sorted((scale(answer.confidence, temperature) for answer in fitted), reverse=True)
    candidates = [ranked[math.ceil(share * len(ranked)) - 1] for share in COVERAGES]
    scaled = [replace(a, confidence=scale(a.confidence, temperature)) for a in tested]
    threshold = certified_threshold(scaled, candidates, max_error=max_error, delta=delta)
    given = [] if threshold is None else [a for a in scaled if a.confidence >= threshold]
    losses = picture_losses(given)
    right = [answer.is_right for answer in tested]
    return Calibration(
        temperature=temperature,
        threshold=threshold,
        max_error=max_error,
        delta=delta,
        num_fitted=counts[0],
        num_tested=counts[1],
        num_left_out=len(answers) - len(fitted) - len(tested),
        coverage=len(given) / len(scaled),
        error=sum(losses) / len(losses) if losses else None,
        ece_before=calibration_error([answer.confidence for answer in tested], right),
        ece_after=calibration_error([answer.confidence for answer in scaled], right),
    )


def split_by_picture(
    answers: Sequence[ConfidentAnswer], *, seed: int
) -> tuple[list[ConfidentAnswer], list[ConfidentAnswer]]:
    """Return two halves that share no picture; the order of the answers does not matter.

    An answer about pictures of both halves is in neither. The clusters of a half become units:
    pictures that questions show together are one.
    """
    halves: tuple[list[ConfidentAnswer], list[ConfidentAnswer]] = ([], [])
    for answer in answers:
        digests = {
            hashlib.sha256(f"{seed}:{picture}".encode()).digest()[0] % 2
            for picture in answer.cluster.split("+")
        }
        if len(digests) == 1:
            halves[digests.pop()].append(answer)
    return _in_units(halves[0]), _in_units(halves[1])


def _in_units(answers: Sequence[ConfidentAnswer]) -> list[ConfidentAnswer]:
    """Return the answers with one cluster per group of pictures that questions join."""
    parents: dict[str, str] = {}

    def root(picture: str) -> str:
        while parents.setdefault(picture, picture) != picture:
            picture = parents[picture]
        return picture

    for answer in answers:
        first, *others = answer.cluster.split("+")
        for other in others:
            parents[root(other)] = root(first)
    return [replace(answer, cluster=root(answer.cluster.split("+")[0])) for answer in answers]


def fit_temperature(answers: Sequence[ConfidentAnswer]) -> float:
    """Return the temperature with the least negative log-likelihood of right and wrong."""
    import numpy as np
    from scipy.optimize import minimize_scalar

    chances = np.clip([answer.confidence for answer in answers], CLIPPED, 1 - CLIPPED)
    signs = np.where([answer.is_right for answer in answers], 1, -1)
    log_odds = signs * np.log(chances / (1 - chances))

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -log_odds / math.exp(log_temperature)).sum())

    bounds = (-MAX_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE)
    return math.exp(float(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def certified_threshold(
    answers: Sequence[ConfidentAnswer],
    candidates: Sequence[float],
    *,
    max_error: float,
    delta: float,
) -> float | None:
    """Return the lowest candidate whose error rate is proven to be at most `max_error`.

    Each of the k candidates is tested at delta / k (Bonferroni). The candidates must not depend
    on the answers. None if no candidate passes.
    """
    passed = [
        candidate
        for candidate in candidates
        if p_value(picture_losses([a for a in answers if a.confidence >= candidate]), max_error)
        <= delta / len(candidates)
    ]
    return min(passed, default=None)


def picture_losses(answers: Iterable[ConfidentAnswer]) -> list[float]:
    """Return the share of wrong answers of each picture; pictures are independent of each other."""
    by_picture: dict[str, list[bool]] = {}
    for answer in answers:
        by_picture.setdefault(answer.cluster, []).append(not answer.is_right)
    return [sum(wrong) / len(wrong) for wrong in by_picture.values()]


def p_value(losses: Sequence[float], max_error: float) -> float:
    """Return the p-value of "the mean loss exceeds `max_error`"; losses lie in [0, 1].

    Exact binomial for losses of 0 and 1, else Hoeffding-Bentkus (Bates et al., arXiv 2101.02703).
    """
    from scipy.special import rel_entr
    from scipy.stats import binom

    if not losses:
        return 1.0
    n, mean = len(losses), sum(losses) / len(losses)
    if all(loss in (0, 1) for loss in losses):
        return float(binom.cdf(round(n * mean), n, max_error))
    if mean >= max_error:
        return 1.0
    bentkus = math.e * float(binom.cdf(math.ceil(n * mean - 1e-9), n, max_error))
    divergence = rel_entr(mean, max_error) + rel_entr(1 - mean, 1 - max_error)
    hoeffding = math.exp(-n * divergence)
    return min(1.0, bentkus, hoeffding)
