"""Multiple choice: the option that an answer names."""

import difflib
import re
import string
from collections.abc import Sequence
from typing import Literal, NamedTuple

from medvqa.config.errors import UserError
from medvqa.config.evaluation import Normalizer
from medvqa.evaluation.normalize import fold, normalize

LETTERS = string.ascii_uppercase
INTRODUCTION = re.compile(r".*\b(?:answer|option|choice)(?: is)?\s*:?\s*", re.DOTALL)


class Choice(NamedTuple):
    """The option's place among the options, and how it was read; the nearest option is a guess."""

    place: int
    how: Literal["letter", "text", "nearest"]


def read_choice(answer: str, options: Sequence[str]) -> Choice:
    """Return the option that an answer names by its text, its letter, or else comes nearest to.

    A text that equals an option is that option, even if it is a letter: blood groups are A, B, AB.
    """
    texts = [normalize(option, Normalizer.medical) for option in options]
    plain = normalize(answer, Normalizer.medical)
    if plain in texts:
        return Choice(texts.index(plain), "text")
    index = _letter(answer, len(options))
    if index is not None:
        return Choice(index, "letter")
    places = [(_end(text, plain), len(text), index) for index, text in enumerate(texts)]
    # The last one counts, as in MMMU; of two that end there, the longer.
    end, _, index = max(places)
    if end:
        return Choice(index, "text")
    ratios = [difflib.SequenceMatcher(None, text, plain).ratio() for text in texts]
    return Choice(ratios.index(max(ratios)), "nearest")


def _end(text: str, answer: str) -> int:
    """Return where an option's text last ends in the answer as whole words; 0 if nowhere."""
    matches = re.finditer(rf"(?<!\w){re.escape(text)}(?!\w)", answer) if text else ()
    return max((match.end() for match in matches), default=0)


def _letter(answer: str, num_options: int) -> int | None:
    """Return the index of the letter in "B", "(B)", "B. left" or "the answer is B"."""
    letters = LETTERS[:num_options]
    forms = (
        rf"\(?([{letters}])\)?[.:)]?",  # the letter alone
        rf"\(?([{letters}])[.:)]\s.*",  # the letter, a mark, and text
        rf"([{letters}])\n.*",
    )
    for text in (answer.strip(), INTRODUCTION.sub("", fold(answer)).upper()):
        for form in forms:
            match = re.fullmatch(form, text if len(text) > 2 else text.upper(), re.DOTALL)
            if match:
                return letters.index(match[1])
    bracketed = re.findall(rf"\(([{letters}])\)", answer)
    return letters.index(bracketed[-1]) if bracketed else None


def correct_option(references: Sequence[str], options: Sequence[str]) -> int:
    """Return the index of the option that the reference is, by its text or its letter.

    Raises:
        UserError: If the reference is no option.
    """
    texts = [normalize(option, Normalizer.medical) for option in options]
    for reference in references:
        plain = normalize(reference, Normalizer.medical)
        if plain in texts:
            return texts.index(plain)
        letter = reference.strip().strip("().:").upper()
        if len(letter) == 1 and letter in LETTERS[: len(options)]:
            return LETTERS.index(letter)
    raise UserError(f"the reference {references[0]!r} is none of {', '.join(options)}")
