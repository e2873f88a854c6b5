"""The options of a multiple-choice question, in any of the shapes that data sets give them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from medvqa.config.errors import UserError
from medvqa.data.rows import parsed

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTERED = re.compile(r"\s*\(?([A-Z])\s*[:.)]\s*(?=\S)")
LETTER = re.compile(r"\(?([A-Za-z])\)?[.:]?")
# Some sets repeat the options at the end of the question.
REPEATED = re.compile(r"\s*Answer Choices:.*", re.DOTALL)


def options_of(value: Any) -> tuple[str, ...]:
    """Return the options in order, without letters; empty where the row has none.

    Args:
        value: A list of texts or of {letter, content}, or an object of texts by letter. Each may
            also be a string of JSON, or of what Python prints.

    Raises:
        UserError: If it is something else, holds one option alone, or repeats one.
    """
    if isinstance(value, str) and value.strip():
        value = parsed(value, "options are no list")
    if value is None or value in ("", [], {}, ()):
        return ()
    if isinstance(value, Mapping):
        value = [value[key] for key in sorted(value, key=str) if value[key] is not None]
    if not isinstance(value, list | tuple):
        raise UserError(f"options are {type(value).__name__}, not a list: {value!r:.80}")
    texts = [_text(entry) for entry in value]
    letters = [match[1] for match in map(LETTERED.match, texts) if match]
    if letters == list(LETTERS[: len(texts)]):
        texts = [LETTERED.sub("", text, count=1) for text in texts]
    texts = [text.strip() for text in texts]
    if len(texts) < 2 or len({text.casefold() for text in texts}) < len(texts) or "" in texts:
        raise UserError(f"options must be two or more different texts, got {texts!r:.120}")
    return tuple(texts)


def _text(entry: Any) -> str:
    if isinstance(entry, Mapping):
        named = [entry[key] for key in ("content", "value", "text", "option") if key in entry]
        entry = named[0] if named else entry
    if isinstance(entry, bool) or not isinstance(entry, str | int | float):
        raise UserError(f"an option is {type(entry).__name__}, not a text: {entry!r:.80}")
    return str(entry)


def right_option(answer: str, options: Sequence[str]) -> str:
    """Return the option that an answer names, by its text or its letter.

    Raises:
        UserError: If it names none.
    """
    by_text = {_plain(option): option for option in options}
    if _plain(answer) in by_text:
        return by_text[_plain(answer)]
    letter = LETTER.fullmatch(answer.strip())
    if letter and (place_of := LETTERS.index(letter[1].upper())) < len(options):
        return options[place_of]
    lettered = LETTERED.sub("", answer, count=1)
    if _plain(lettered) in by_text:
        return by_text[_plain(lettered)]
    raise UserError(f"answer {answer!r:.60} is none of the options {list(options)!r:.160}")


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(" .")
