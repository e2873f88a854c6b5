"""Text as it is compared: one function per normaliser, and its tokens; see docs/metrics.md."""

import functools
import re
import string
import unicodedata
from collections.abc import Callable

from medvqa.config.evaluation import Normalizer
from medvqa.evaluation.units import UNIT

ARTICLES = re.compile(r"\b(a|an|the)\b")
ARTICLES_BEFORE_A_WORD = re.compile(r"\b(a|an|the)\b(?=\s+\S)")  # "hepatitis a" keeps its letter
# NFKC leaves quotation marks, primes, the minus sign (U+2212) and dashes as they are.
TYPOGRAPHIC = {
    **dict.fromkeys(map(ord, "\u2018\u2019\u201a\u201b\u2032\u02bc"), "'"),
    **dict.fromkeys(map(ord, "\u201c\u201d\u201e\u2033"), '"'),
    **dict.fromkeys(map(ord, "\u2212\u2010\u2011\u2012\u2013\u2014"), "-"),
    **dict.fromkeys(map(ord, "\u2044\u2215"), "/"),
}
# Control and format characters: byte-order marks, soft hyphens, marks of width zero or direction.
INVISIBLE = re.compile(
    "[\0-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\ufeff\ufff9-\ufffb]"
)
# What NFKC would make another number: a power, a number and a fraction, groups of digits.
SUPERSCRIPT = re.compile("(?<=\\d)(?=[\u207a\u207b\u00b2\u00b3\u00b9\u2070\u2074-\u2079])"
                         "(?<![\u00b2\u00b3\u00b9\u2070\u2074-\u2079])")  # fmt: skip
VULGAR = re.compile("(?<=\\d)(?=[\u00bc-\u00be\u2150-\u215e])")
GROUPS = re.compile("(?<![\\d.,])\\d{1,3}(?:[\u00a0\u2007\u2009\u202f'\u2019]\\d{3})+(?!\\d)")
CJK = re.compile(
    "([\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003134f])"
)
WORDS = "zero one two three four five six seven eight nine ten"
VQA_NUMBERS = {"none": "0", **{word: str(i) for i, word in enumerate(WORDS.split())}}
VQA_MARKS = ';/[]"{}()=+\\_-><@`,?!'
VQA_PERIOD = re.compile(r"(?!<=\d)\.(?!\d)")  # as published: the lookahead is a slip for "(?<="
# (pattern, replacement): one form per number, in this order.
NUMBER_FORMS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<![\w.,])(\d{1,3}(?:\.\d{3})+),(?=\d+(?![\d,]))",
         lambda match: match[1].replace(".", "") + "."),  # 1.000,5
        (r"(?<![\w.,])0,(?=\d)", "0."),
        (r"(?<=\d),(?=\d{3}(?!\d))", ""),  # 1,000
        (rf"(?<![\w.,])(-?\d+),(?=\d+\s*-?(?:{UNIT})(?!\w))", r"\1."),  # 1,5 cm
        (r"(?<![\w.])\.(?=\d)", "0."),
        (rf"(?<=\d)\s*({UNIT})?\s*[x\u00d7*]\s*(?=\d)", r" \1 x "),
        (rf"(?<![\w.])(-?\d+(?:\.\d+)?)-?\s*({UNIT})(?!\w)", r"\1 \2"),
        (r"(?<=\d)\s*%", " percent"),
        (r"(?:≤|=<|<=)\s*(?=-?\d)", "<="),
        (r"(?:≥|=>|>=)\s*(?=-?\d)", ">="),
        (r"([<>])\s+(?=-?\d)", r"\1"),
    )
)  # fmt: skip
# Marks that carry the meaning of a number or a sign: 1.5, -5, 1e-3, <5, >=5, HER2+.
KEPT_MARKS = re.compile(
    r"(?<=\d)\.(?=\d)|(?<![\w.])-(?=\d)|(?<=\de)-(?=\d)|[<>](?==?-?\d)|(?<=[<>])=(?=-?\d)"
    r"|(?<=\w)\+(?=[\s,.;:)]|$)"
)


def fold(text: str) -> str:
    """Return lower-case text with one form per character: full-width, quotes, minus, spaces.

    Digits of all scripts become 0 to 9, and invisible characters go.
    """
    if not text.isascii():
        text = re.sub(r"\d", lambda digit: str(unicodedata.decimal(digit[0])), text)
        text = text.replace("\u066b", ".").replace("\u066c", ",").replace("\u00b4", "'")
        text = VULGAR.sub(" ", SUPERSCRIPT.sub("^", INVISIBLE.sub("", text)))
    text = GROUPS.sub(lambda number: re.sub(r"\D", "", number[0]), INVISIBLE.sub("", text))
    plain = unicodedata.normalize("NFKC", text).translate(TYPOGRAPHIC)
    return " ".join(plain.casefold().split())


def plain_numbers(text: str) -> str:
    """Return folded text with one form per number: 5mm is 5 mm, 1,5 cm is 1.5 cm, 2x3 is 2 x 3."""
    for pattern, replacement in NUMBER_FORMS:
        text = pattern.sub(replacement, text)
    return text


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
    """Remove marks and articles, but keep the marks that carry a number's meaning."""
    text = plain_numbers(text)
    places = {match.start() for match in KEPT_MARKS.finditer(text)}
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
