"""Scores of one answer against its references; definitions and sources in docs/metrics.md."""

import functools
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

from medvqa.config.evaluation import Normalizer

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")
WORDS = "zero one two three four five six seven eight nine ten eleven twelve"
NUMBER_WORDS = {word: str(number) for number, word in enumerate(WORDS.split())}
# VQA v2 writes apostrophes back into contractions; these stems and endings generate its list.
CONTRACTIONS = {
    f"{stem}{ending.replace(chr(39), '')}": f"{stem}{ending}"
    for stems, ending in (
        ("ain aren couldn didn doesn don hadn hasn haven isn mightn mustn needn shouldn wasn "
         "weren won wouldn", "'t"),
        ("could he how i it might must she should that there they we what who would you", "'d"),
        ("could might must should they we who would you", "'ve"),
        ("how it she that they what who you", "'ll"),
        ("they you what who", "'re"),
        ("he she how it let that there what where who", "'s"),
    )
    for stem in stems.split()
    if f"{stem}{ending.replace(chr(39), '')}" not in {"id", "hell", "shell", "were", "well", "its",
                                                      "wed", "shed", "ill", "lets"}
}  # fmt: skip
# Not part of a number: removed by VQA v2 unless it stands between digits.
VQA_PUNCTUATION = re.compile(r"(?<!\d)[.,]|[.,](?!\d)|[;/\[\]\"{}()=+\\_\-<>@`?!:]")
LENGTH_IN_MM = {"mm": 1.0, "cm": 10.0, "m": 1000.0}
NUMBER = re.compile(
    r"(?<![\w.])([-+]?\d+(?:,\d{3})*(?:\.\d+)?|[-+]?\.\d+)\s*(mm|cm|m)?(?![\w])", re.IGNORECASE
)


@functools.lru_cache(maxsize=2**14)  # each metric asks again, and answers repeat
def normalize(text: str, normalizer: Normalizer) -> str:
    """Return the text as it is compared.

    A text that consists of removed words or marks alone ("a", "?") keeps its lower-case form, so
    that two different such answers do not both become empty and equal.
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).lower().split())
    return NORMALIZERS[normalizer](plain) or plain


def _punctuation(text: str) -> str:
    return " ".join(text.translate(PUNCTUATION).split())


def _squad(text: str) -> str:
    return " ".join(ARTICLES.sub(" ", _punctuation(text)).split())


def _vqa(text: str) -> str:
    words = [
        word for word in VQA_PUNCTUATION.sub(" ", text).split() if not ARTICLES.fullmatch(word)
    ]
    digits = [NUMBER_WORDS.get(word, word) for word in words]
    return " ".join(CONTRACTIONS.get(word, word) for word in digits)


NORMALIZERS = {
    Normalizer.squad: _squad,
    Normalizer.vqa: _vqa,
    Normalizer.punctuation: _punctuation,
}


def exact_match(prediction: str, references: Sequence[str], normalizer: Normalizer) -> bool:
    """Return whether the normalised prediction equals any normalised reference."""
    said = normalize(prediction, normalizer)
    return any(said == normalize(reference, normalizer) for reference in references)


def token_f1(prediction: str, references: Sequence[str], normalizer: Normalizer) -> float:
    """Return the best F1 of shared tokens, counted with multiplicity, in [0, 1].

    Two empty texts agree (1), one empty text does not (0), as in SQuAD's evaluation.
    """
    said = normalize(prediction, normalizer).split()
    return max(_overlap(said, normalize(r, normalizer).split())[0] for r in references)


def token_recall(prediction: str, references: Sequence[str], normalizer: Normalizer) -> float:
    """Return the best share of a reference's tokens that the prediction holds, in [0, 1].

    LLaVA-Med's measure for open questions; a long answer that lists everything gets 1.
    """
    said = normalize(prediction, normalizer).split()
    return max(_overlap(said, normalize(r, normalizer).split())[1] for r in references)


def _overlap(said: Sequence[str], wanted: Sequence[str]) -> tuple[float, float]:
    """Return F1 and recall."""
    if not said or not wanted:
        equal = float(said == wanted)
        return equal, equal
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted)), shared / len(wanted)


def numbers(text: str) -> list[tuple[float, float | None]]:
    """Return the text's numbers as written, each with its unit in millimetres if it has one.

    Number words up to twelve count, "L4" or "T2" do not.
    """
    spelled = " ".join(NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return [
        (float(digits.replace(",", "")), LENGTH_IN_MM.get(unit.lower()))
        for digits, unit in NUMBER.findall(spelled)
    ]


def numeric_match(prediction: str, references: Sequence[str], tolerance: float) -> bool | None:
    """Return whether the first number equals a reference's within the relative tolerance.

    Lengths compare in millimetres where both sides name a unit; where one side does not, the
    written figures compare. None where no reference holds a number: such a question has no
    numeric score, and the metric's count is smaller.
    """
    expected = [found[0] for found in map(numbers, references) if found]
    if not expected:
        return None
    answers = numbers(prediction)[:1]
    return any(_close(answer, number, tolerance) for answer in answers for number in expected)


def _close(
    answer: tuple[float, float | None], expected: tuple[float, float | None], tolerance: float
) -> bool:
    has_units = answer[1] and expected[1]
    one, other = (
        number * (unit if has_units and unit else 1.0) for number, unit in (answer, expected)
    )
    return abs(one - other) <= tolerance * abs(other) + 1e-9


def yes_or_no(text: str) -> str | None:
    """Return `yes` or `no` if exactly one of the two words stands in the text.

    Whole words only: "no" is neither in "nodule" nor in "abnormal".
    """
    words = set(re.findall(r"[a-z]+", text.lower())) & {"yes", "no"}
    return words.pop() if len(words) == 1 else None


def closed_answer(
    prediction: str, references: Sequence[str], normalizer: Normalizer
) -> bool | None:
    """Return whether a closed question is answered rightly; None if no answer can be read.

    Yes/no questions are read with `yes_or_no`, other closed ones compare exactly.
    """
    wanted = {yes_or_no(r) for r in references if normalize(r, normalizer) in ("yes", "no")}
    if not wanted:
        return exact_match(prediction, references, normalizer)
    said = yes_or_no(prediction)
    return None if said is None else said in wanted
