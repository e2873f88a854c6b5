"""Numbers in answers: 3.9kg, two, 12x3 mm; a name such as L4, T2 or 5th rib holds none."""

import math
import re
from dataclasses import dataclass
from decimal import Decimal

from medvqa.evaluation.normalize import fold, plain_numbers, tokens
from medvqa.evaluation.units import UNIT, UNITS

ONES = "one two three four five six seven eight nine"
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
NUMBER_WORDS = {word: number for number, word in enumerate(f"zero {ONES} {TEENS}".split())} | {
    word: 10 * number for number, word in enumerate(TENS.split(), start=2)
}
SCALES = {"thousand": 1_000, "million": 1_000_000}
_ones, _teens, _tens = ("|".join(words.split()) for words in (ONES, TEENS, TENS))
_small = rf"(?:(?:{_tens})(?:[- ](?:{_ones}))?|{_teens}|{_ones}|zero)"
_hundreds = rf"(?:(?:a|{_small})[- ]hundred(?:[- ](?:and )?{_small})?|{_small}|hundred)"
_scaled = rf"(?:(?:a|{_hundreds})[- ](?:{'|'.join(SCALES)})|{'|'.join(SCALES)})"
NUMBER_WORD = re.compile(
    rf"(?<![\w-])(?:{_scaled}(?:[- ](?:and )?{_scaled})*(?:[- ](?:and )?{_hundreds})?|{_hundreds})"
    r"(?![\w-])"
)
# Letters, or letters and a hyphen, before the digits make a name: L4, T2, COVID-19, L4-5. So does
# the ending of an ordinal, or its beginning in Chinese: 5th rib.
NUMBER = re.compile(
    r"(?<![\w.])(?<!\w-)(?<!第 )([-+]?\d+(?:\.\d+)?)(?!\d|-?(?:st|nd|rd|th)\b)"
    r"\s*([a-zμ°]+[23]?(?!\d)|%)?"
)
POWER = re.compile(r"(?<![\w.])(?:(\d+(?:\.\d+)?)\s+x\s+)?10\^([-+]?\d{1,2})(?!\d)")
POWER_OF_UNIT = re.compile(r"(?<=m)\^(?=[23](?!\d))")  # cm^2
SCIENTIFIC = re.compile(r"(?<![\w.])\d+(?:\.\d+)?e[-+]?\d{1,2}(?![\w.])")
FRACTION = re.compile(r"(?<![\w./])(?:(\d+) )?(1/2|1/3|2/3|1/4|3/4|[1357]/8)(?![\d/])")
RANGE = re.compile(rf"(?<![\w.-])(\d+(?:\.\d+)?)\s*(?:-|to)\s*(?=\d+(?:\.\d+)?\s*(?:{UNIT})(?!\w))")
MINUS = re.compile(r"(?<!\w)(?:minus|negative) (?=\d)")


@dataclass(frozen=True)
class Number:
    """A number as it is written, with its unit; `is_count` if it is whole and has no unit."""

    value: float
    dimension: str | None = None
    scale: float = 1.0
    is_count: bool = False


def numbers(text: str) -> list[Number]:
    """Return the numbers of a text; the first of a product (12x3 mm) has the unit of the last."""
    rows = []
    following = ""
    for digits, unit in reversed(NUMBER.findall(_as_digits(text))):
        following = following if unit == "x" else unit
        dimension, scale = UNITS.get(following, (None, 1.0))
        is_count = dimension is None and "." not in digits
        value = float(digits)
        if math.isfinite(value):
            rows.append(Number(value, dimension, scale, is_count))
    return rows[::-1]


def _as_digits(text: str) -> str:
    """Return the text with words, powers of ten and fractions as decimal numbers."""
    spelled = NUMBER_WORD.sub(lambda words: str(_spelled(words[0])), " ".join(tokens(fold(text))))
    spelled = POWER_OF_UNIT.sub("", MINUS.sub("-", spelled))
    plain = RANGE.sub(r"\1 x ", plain_numbers(spelled))
    plain = POWER.sub(lambda m: format(Decimal(f"{m[1] or 1}e{m[2]}"), "f"), plain)
    plain = SCIENTIFIC.sub(lambda m: format(Decimal(m[0]), "f"), plain)
    return FRACTION.sub(_decimal, plain)


def _decimal(match: re.Match[str]) -> str:
    over, under = map(int, match[2].split("/"))
    return f"{int(match[1] or 0) + over / under:.6f}"


def _spelled(words: str) -> int:
    """Return the number that words such as "one hundred and twenty-one" name."""
    total = part = 0
    for word in re.findall(r"[a-z]+", words):
        if word in SCALES:
            total, part = total + (part or 1) * SCALES[word], 0
        elif word == "hundred":
            part = (part or 1) * 100
        else:
            part += NUMBER_WORDS.get(word, 0)
    return total + part
