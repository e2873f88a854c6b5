"""Text as it is compared: one function per normaliser, and its tokens; see docs/metrics.md."""

import functools
import re
import string
import unicodedata
from collections.abc import Callable

from medvqa.config.evaluation import Normalizer

ARTICLES = re.compile(r"\b(a|an|the)\b")
ARTICLES_BEFORE_A_WORD = re.compile(r"\b(a|an|the)\b(?=\s+\S)")  # "hepatitis a" keeps its letter
# NFKC leaves quotation marks, primes, the minus sign (U+2212) and dashes as they are.
TYPOGRAPHIC = {
    **dict.fromkeys(map(ord, "\u2018\u2019\u201a\u201b\u2032"), "'"),
    **dict.fromkeys(map(ord, "\u201c\u201d\u201e\u2033"), '"'),
    **dict.fromkeys(map(ord, "\u2212\u2010\u2011\u2012\u2013\u2014"), "-"),
}
CJK = re.compile(
    "([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003134f])"
)
WORDS = "zero one two three four five six seven eight nine ten"
VQA_NUMBERS = {"none": "0", **{word: str(i) for i, word in enumerate(WORDS.split())}}
VQA_MARKS = ';/[]"{}()=+\\_-><@`,?!'
VQA_PERIOD = re.compile(r"(?!<=\d)\.(?!\d)")  # as published: the lookahead is a slip for "(?<="
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# A point between digits, or a minus before a number that follows no letter or digit.
KEPT_IN_NUMBERS = re.compile(r"(?<=\d)\.(?=\d)|(?<![\w.])-(?=\.?\d)|(?<![\w.])\.(?=\d)")
UNITS = "mm|cm|m|km|mg|g|kg|ug|µg|ml|l|cc|t|tesla|hz|khz|mhz|kv|kvp|mas?|ms|s|min|h|mmhg|bpm"
NUMBER_AND_UNIT = re.compile(rf"(?<![\w.])(-?\d*\.?\d+)({UNITS})\b")


def fold(text: str) -> str:
    """Return lower-case text with one form per character: full-width, quotes, minus, spaces."""
    plain = unicodedata.normalize("NFKC", text).translate(TYPOGRAPHIC)
    return " ".join(plain.lower().split())


@functools.lru_cache(maxsize=2**14)  # each metric asks again, and answers repeat
def normalize(text: str, normalizer: Normalizer) -> str:
    """Return the text as it is compared.

    A text that consists of removed words or marks alone ("a", "?") keeps its lower-case form.
    Otherwise two different such answers would both become empty, and equal.
    """
    plain = fold(text)
    return NORMALIZERS[normalizer](plain) or plain


def tokens(text: str) -> list[str]:
    """Return the words of a normalised text; each Chinese, Japanese or Korean character is one.

    These scripts put no spaces between words. MLQA's evaluation (Lewis et al., 2020) does so too.
    """
    return CJK.sub(r" \1 ", text).split()


class _Marks(dict[int, str | None]):
    """What `str.translate` makes of a code point: marks of any script go (category P, ASCII's)."""

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        is_mark = character in string.punctuation or unicodedata.category(character)[0] == "P"
        self[code] = None if is_mark else character
        return self[code]


MARKS = _Marks()


def _punctuation(text: str) -> str:
    return " ".join(text.translate(MARKS).split())


def _squad(text: str) -> str:
    return " ".join(ARTICLES.sub(" ", _punctuation(text)).split())


def _medical(text: str) -> str:
    """Remove marks and articles, but keep the point and the minus of a number."""
    text = NUMBER_AND_UNIT.sub(r"\1 \2", THOUSANDS.sub("", text))
    places = {match.start() for match in KEPT_IN_NUMBERS.finditer(text)}
    characters = []
    for position, character in enumerate(text):
        if position in places or MARKS[ord(character)]:
            characters.append(character)
        elif character == "/" or (
            text[position - 1 : position].isdigit() and text[position + 1 : position + 2].isdigit()
        ):
            characters.append(" ")  # 120/80 and 3-4 are two numbers
    return " ".join(ARTICLES_BEFORE_A_WORD.sub(" ", " ".join("".join(characters).split())).split())


def vqa_v2(text: str) -> str:
    """Return the text as VQA v2's evaluation compares it.

    Source: the rules at visualqa.org/evaluation.html and their code (Antol et al., 2015), with its
    slips. LLaVA-Med's and EvalAI's evaluations use the same rules.
    """
    is_joined = re.search(r"\d,\d", text) is not None
    stripped = text
    for mark in VQA_MARKS:
        at_an_edge = f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if at_an_edge or is_joined else " ")
    # The published call passes re.UNICODE (32) as the number of replacements.
    stripped = VQA_PERIOD.sub("", stripped, count=32)
    words = [VQA_NUMBERS.get(word, word) for word in stripped.lower().split()]
    words = [word for word in words if not ARTICLES.fullmatch(word)]
    return " ".join(_contractions().get(word, word) for word in words)


@functools.cache
def _contractions() -> dict[str, str]:
    """Return VQA v2's map from a contraction without its apostrophes to the one with them."""
    pairs = (
        ("'t", "ain aren can couldn didn doesn don hadn hasn haven isn mightn mustn needn oughtn "
               "shan shouldn wasn weren won wouldn"),
        ("'ve", "could might must not should they we what where who would you"),
        ("'d", "he how it someone something there they where who you"),
        ("'s", "he how somebody someone that there what when where who why"),
        ("'ll", "how it somebody someone something they what who why you"),
        ("'re", "there they what why you"),
        ("'all", "y"),
    )  # fmt: skip
    whole = {stem + ending.replace("'", ""): stem + ending
             for ending, stems in pairs for stem in stems.split()}  # fmt: skip
    would = "he it she somebody someone something there they who you"
    unless = "couldn hadn mightn shouldn wouldn"
    twice = [f"{stem}'d" for stem in would.split()] + [f"{stem}'t" for stem in unless.split()]
    for short in twice:
        stem, _, ending = short.partition("'")
        whole[f"{stem}{ending}'ve"] = whole[f"{short}ve"] = f"{short}'ve"
    for short in ("ll", "d've"):
        whole[f"yall'{short}"] = f"y'all'{short}"
        whole[f"y'all{short}"] = f"y'all'{short}"
    return {**whole, "y'all'dve": "y'all'd've", "wed've": "we'd've", "maam": "ma'am",
            "oclock": "o'clock", "twas": "'twas", "ow's'at": "'ow's'at", "'ows'at": "'ow's'at",
            "'ow'sat": "'ow's'at", "somebody'd": "somebodyd"}  # fmt: skip


NORMALIZERS: dict[Normalizer, Callable[[str], str]] = {
    Normalizer.medical: _medical,
    Normalizer.squad: _squad,
    Normalizer.vqa: vqa_v2,
    Normalizer.punctuation: _punctuation,
}
