"""Scores of one answer against its references; definitions and sources in docs/metrics.md."""

import re
from collections import Counter
from collections.abc import Sequence

from medvqa.config.evaluation import Normalizer, Tolerance
from medvqa.evaluation.normalize import fold, normalize, tokens
from medvqa.evaluation.numbers import Number, numbers


def exact_match(prediction: str, references: Sequence[str], normalizer: Normalizer) -> bool:
    """Return whether the normalised prediction equals any normalised reference."""
    answer = normalize(prediction, normalizer)
    return any(answer == normalize(reference, normalizer) for reference in references)


def token_f1(prediction: str, references: Sequence[str], normalizer: Normalizer) -> float:
    """Return the best F1 of shared tokens, counted with multiplicity, in [0, 1].

    Two empty texts agree (1), one empty text does not (0), as in SQuAD's evaluation.
    """
    return max(_overlap(prediction, reference, normalizer)[0] for reference in references)


def token_recall(prediction: str, references: Sequence[str], normalizer: Normalizer) -> float:
    """Return the best share of a reference's tokens that the prediction holds, in [0, 1].

    A long answer that lists everything gets 1.
    """
    return max(_overlap(prediction, reference, normalizer)[1] for reference in references)


def _overlap(prediction: str, reference: str, normalizer: Normalizer) -> tuple[float, float]:
    """Return F1 and recall."""
    answer, expected = (tokens(normalize(text, normalizer)) for text in (prediction, reference))
    if not answer or not expected:
        equal = float(answer == expected)
        return equal, equal
    shared = sum((Counter(answer) & Counter(expected)).values())
    return 2 * shared / (len(answer) + len(expected)), shared / len(expected)


def numeric_match(
    prediction: str,
    references: Sequence[str],
    tolerance: float,
    kind: Tolerance = Tolerance.relative,
) -> bool | None:
    """Return whether the first number equals a reference's within the tolerance.

    A count (a whole number without a unit) must be equal where the tolerance is relative: 20 is
    not 21. Units of one dimension are converted. Where one side names no unit, the written figures
    compare. None where no reference holds a number: such a question has no numeric score.
    """
    expected = [values[0] for values in map(numbers, references) if values]
    if not expected:
        return None
    answers = numbers(prediction)[:1]
    return any(_close(answer, one, tolerance, kind) for answer in answers for one in expected)


def _close(answer: Number, expected: Number, tolerance: float, kind: Tolerance) -> bool:
    one, other = answer.value, expected.value
    if answer.dimension and expected.dimension:
        if answer.dimension != expected.dimension:
            return False
        one, other = one * answer.scale, other * expected.scale
    margin = tolerance if kind is Tolerance.absolute else tolerance * abs(other)
    if expected.is_count and kind is Tolerance.relative:
        margin = 0.0
    return abs(one - other) <= margin + 1e-9


def yes_or_no(text: str) -> str | None:
    """Return `yes` or `no` if exactly one of the two words stands in the text.

    Whole words only: "no" is neither in "nodule" nor in "abnormal".
    """
    words = set(re.findall(r"[a-z]+", fold(text))) & {"yes", "no"}
    return words.pop() if len(words) == 1 else None


def is_yes_or_no(text: str) -> bool:
    """Return whether a text is nothing but yes or no: "Yes." is, "Yes, left" is not."""
    return normalize(text, Normalizer.squad) in ("yes", "no")


def closed_answer(
    prediction: str, references: Sequence[str], normalizer: Normalizer
) -> bool | None:
    """Return whether a closed question is answered rightly; None if no answer can be read.

    Yes/no questions are read with `yes_or_no`, other closed ones compare exactly.
    """
    expected = {yes_or_no(reference) for reference in references if is_yes_or_no(reference)}
    if not expected:
        return exact_match(prediction, references, normalizer)
    answer = yes_or_no(prediction)
    return None if answer is None else answer in expected
