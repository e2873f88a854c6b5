"""Numbers in answers: 3.9kg, two, 12x3 mm; a name such as L4 or T2 holds none."""

import re
from dataclasses import dataclass

from medvqa.evaluation.normalize import fold

WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
NUMBER_WORDS = {word: number for number, word in enumerate(WORDS.split())} | {
    f"{ten}{joint}{unit}": 10 * tens + number
    for tens, ten in enumerate(TENS.split(), start=2)
    for number, unit in enumerate(("", *WORDS.split()[1:10]))
    for joint in (("-", " ") if unit else ("",))
}
# The longest word first: twenty-one before twenty.
NUMBER_WORD = re.compile(
    rf"(?<![\w-])({'|'.join(sorted(NUMBER_WORDS, key=len, reverse=True))})(?![\w-])"
)
# (dimension, scale): numbers of one dimension are compared at one scale.
UNITS: dict[str, tuple[str, float]] = {
    **{unit: ("length", scale) for unit, scale in
       {"mm": 1.0, "cm": 10.0, "m": 1000.0, "millimeters": 1.0, "centimeters": 10.0,
        "millimeter": 1.0, "centimeter": 10.0, "inch": 25.4, "inches": 25.4}.items()},
    **{unit: ("mass", scale) for unit, scale in
       {"ug": 1e-3, "μg": 1e-3, "mg": 1.0, "g": 1e3, "kg": 1e6}.items()},
    **{unit: ("volume", scale) for unit, scale in {"ml": 1.0, "cc": 1.0, "l": 1000.0}.items()},
    **{unit: ("time", scale) for unit, scale in
       {"ms": 1e-3, "s": 1.0, "sec": 1.0, "seconds": 1.0, "min": 60.0, "minutes": 60.0,
        "h": 3600.0, "hours": 3600.0}.items()},
    "t": ("field", 1.0), "tesla": ("field", 1.0), "%": ("share", 1.0), "percent": ("share", 1.0),
}  # fmt: skip
# Letters, or letters and a hyphen, before the digits make a name: L4, T2, COVID-19, L4-5.
NUMBER = re.compile(
    r"(?<![\w.])(?<!\w-)([-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|[-+]?\.\d+)"
    r"\s*([a-zμ]+|%)?"
)
PRODUCT = re.compile(r"(?<=\d)\s*[x\u00d7*]\s*(?=[\d.])")


@dataclass(frozen=True)
class Number:
    """A number as it is written, with its unit; `is_count` if it is whole and has no unit."""

    value: float
    dimension: str | None = None
    scale: float = 1.0
    is_count: bool = False


def numbers(text: str) -> list[Number]:
    """Return the numbers of a text; the first of a product (12x3 mm) has the unit of the last."""
    spelled = NUMBER_WORD.sub(lambda match: str(NUMBER_WORDS[match[1]]), fold(text))
    rows = []
    following = ""
    for digits, unit in reversed(NUMBER.findall(PRODUCT.sub(" x ", spelled))):
        following = following if unit == "x" else unit
        dimension, scale = UNITS.get(following, (None, 1.0))
        is_count = dimension is None and "." not in digits
        rows.append(Number(float(digits.replace(",", "")), dimension, scale, is_count))
    return rows[::-1]
