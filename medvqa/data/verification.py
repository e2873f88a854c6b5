"""Checks of rows that apply whatever the data set: texts of the chat format, damaged pictures."""

import os
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from medvqa.config.errors import UserError, printable
from medvqa.data.bad_rows import BadRows
from medvqa.data.example import Example, ImageSource
from medvqa.data.image import check_decodes
from medvqa.data.phantom_drawing import PhantomImage
from medvqa.data.prefetch import ahead
from medvqa.data.storage.hub import RowImage

# A tokenizer reads these as its own; in a question they would open a turn or stand for an image.
CHAT_TOKEN = re.compile(r"<\|[a-z_]+\|>")
NO_CHARACTER = re.compile("[\ud800-\udfff\0]")  # a lone surrogate cannot be encoded
# Of white space, soft hyphens and marks of width zero alone, a text looks empty.
VISIBLE = re.compile("[^\\s\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufeff]")
MAX_VERIFIED = 20_000


def usable(examples: Sequence[Example], bad_rows: BadRows) -> list[Example]:
    """Return the examples that can be used; the others are errors or, as far as allowed, skipped.

    Every picture is decoded only where rows may be skipped, so that which are depends on the data
    alone. Where none may, `check_images` is for those that a run will use.
    """
    readable = []
    for example in examples:
        with bad_rows.row(_name(example)):
            _check_texts(example)
            readable.append(example)
    return verify_images(readable, bad_rows) if bad_rows.limit else readable


def verify_images(examples: Sequence[Example], bad_rows: BadRows) -> list[Example]:
    """Return the examples whose pictures all decode; each picture is decoded once, by threads."""
    distinct = stored_images(examples)
    pictures: list[Any] = list(distinct.values())
    reasons = ahead(_fault, pictures, num_threads=os.cpu_count() or 1)
    faults = {key: reason for key, reason in zip(distinct, reasons, strict=True) if reason}
    sound = []
    for example in examples:
        with bad_rows.row(_name(example)):
            for key in _keyed(example).keys() & faults.keys():
                raise UserError(faults[key])
            sound.append(example)
    return sound


def check_images(examples: Iterable[Example]) -> int:
    """Raise a `UserError` naming row and file if a picture does not decode.

    At most `MAX_VERIFIED` pictures are decoded, in the order of the examples, so that a start takes
    some seconds at most. A damaged picture behind them ends the run when its turn comes, and the
    same command continues the run.

    Returns:
        How many pictures were not decoded.
    """
    chosen: list[Example] = []
    keys: set[str] = set()
    rest: set[str] = set()
    for example in examples:
        new = _keyed(example).keys() - keys
        if len(keys) + len(new) > MAX_VERIFIED:
            rest |= new
        elif new:
            keys |= new
            chosen.append(example)
    verify_images(chosen, BadRows(0))
    return len(rest)


def _name(example: Example) -> str:
    return printable(f"{example.source}/{example.id}")


def _check_texts(example: Example) -> None:
    for text in (example.question, *example.answers, *example.options):
        if token := CHAT_TOKEN.search(text):
            raise UserError(f"the text holds {token[0]}, a token of the chat format; take it out")
        if not VISIBLE.search(text):
            raise UserError(f"the text {text!a} has no visible character; mend or remove it")
    names = (example.id, *example.image_ids, *(image.name for image in example.images))
    for text in (example.question, *example.answers, *example.options, *names):
        if broken := NO_CHARACTER.search(text):
            kind = "a null character" if broken[0] == "\0" else "half a character"
            code = f"U+{ord(broken[0]):04X}"
            raise UserError(f"the text holds {kind} ({code}); mend or remove it")


def stored_images(examples: Iterable[Example]) -> dict[str, ImageSource]:
    """Return each picture that is stored somewhere once, by its key; drawn ones cannot change."""
    return {key: image for example in examples for key, image in _keyed(example).items()}


def _keyed(example: Example) -> dict[str, ImageSource]:
    """Return the stored pictures by what makes them the same file.

    Rows that hold their pictures repeat them; the id is then the hash of the bytes.
    """
    pairs = zip(example.images, example.image_ids, strict=True)
    return {
        name if isinstance(image, RowImage) else image.name: image
        for image, name in pairs
        if not isinstance(image, PhantomImage)
    }


@lru_cache(maxsize=MAX_VERIFIED)
def _fault(image: Any) -> str | None:
    """Return why a picture does not decode; cached, since the jobs of a sweep share pictures."""
    try:
        check_decodes(image)
    except UserError as error:
        return str(error)
    return None
