"""What the loaders share: a row's texts, and the rules for its answer type.

The rules, where a set states no types (`type_origin` is then `rule`):

1. `yes_no_type`: closed if the answer is yes or no. On VQA-RAD's test set this rule calls 251
   questions closed and 200 open. The official labels call 272 closed, these 251 among them, and
   179 open.
2. `offered_type`, for VQA-Med alone: closed also if the question lists the answer among choices.
"""

import ast
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from medvqa.config.data import RowsConfig
from medvqa.config.errors import UserError
from medvqa.data.example import AnswerType, Example

EDGES = re.compile(r"^\W+|\W+$")
MARKER = re.compile(r"[ \t]*<image>")
NUMBERED_MARKER = re.compile(r"<image (\d+)>")
DIFFICULTIES: dict[str, float | str] = {"easy": 1, "medium": 2, "hard": 3}


class Drawn(NamedTuple):
    """What a loader returns that draws the sample itself, since its set is too large to read whole.

    Attributes:
        num_available: Rows that it drew from.
    """

    examples: list[Example]
    num_available: int


def check_split(config: RowsConfig, known: Iterable[str]) -> None:
    """Raise a `UserError` with the known splits if the asked one is none of them."""
    if config.split not in (names := list(known)):
        raise UserError(f"{config.name} has no split {config.split!r}; it has {', '.join(names)}")


def official_type(stated: str) -> AnswerType:
    """Return the answer type that a data set states as OPEN or CLOSED."""
    types: dict[str, AnswerType] = {"OPEN": "open", "CLOSED": "closed"}
    if stated.upper() not in types:
        raise UserError(f"answer_type is {stated!r}, not OPEN or CLOSED")
    return types[stated.upper()]


def difficulty_of(stated: object) -> float | None:
    """Return a row's difficulty as a number; easy, medium and hard are 1, 2 and 3."""
    if stated is None or stated == "":
        return None
    text = str(stated).strip().lower()
    try:
        number = float(DIFFICULTIES.get(text, text))
    except ValueError:
        number = math.nan
    if isinstance(stated, bool) or not math.isfinite(number):
        raise UserError(f"difficulty is {stated!r:.40}, not a number")
    return number


def row_texts(row: object, *names: str) -> dict[str, str]:
    """Return the named cells as stripped texts; numbers become texts.

    Raises:
        UserError: If the row is none, or a cell is missing, empty or neither text nor number.
    """
    if not isinstance(row, Mapping):
        raise UserError(f"is no row but {type(row).__name__}")
    missing = [name for name in names if name not in row]
    if missing:
        raise UserError(f"no column {', '.join(missing)}; found {', '.join(row)}")
    texts = {}
    for name in names:
        value = row.get(name)
        # pandas writes nan for an empty cell.
        if value is None or str(value).strip().lower() in ("", "nan"):
            raise UserError(f"has no {name}")
        if isinstance(value, bool):
            value = "yes" if value else "no"
        if not isinstance(value, str | int | float):
            raise UserError(f"{name} is {type(value).__name__}, not a text: {value!r:.80}")
        texts[name] = str(value).strip()
    return texts


def parsed(text: str, complaint: str) -> Any:
    """Return the value that a text holds, in JSON or as Python prints it.

    Raises:
        UserError: With the complaint and the text, if it is neither.
    """
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    raise UserError(f"{complaint}: {text!r:.80}")


def as_list(stored: Any) -> list[Any]:
    """Return the right answers of a cell: a list, one as a text ("['a', 'b']"), or one answer."""
    if isinstance(stored, list):
        return stored
    if isinstance(stored, str) and stored.strip()[:1] == "[":
        with suppress(UserError):
            values = parsed(stored, "no list")
            if isinstance(values, list) and all(isinstance(value, str) for value in values):
                return values
    return [stored]


def yes_no_type(answer: str) -> AnswerType:
    """Return `closed` for an answer of yes or no, the rule where a set states no type."""
    return "closed" if EDGES.sub("", answer).lower() in ("yes", "no") else "open"


def offered_type(question: str, answers: Sequence[str]) -> AnswerType:
    """Return `closed` also where the question lists the answer: "is it t1, t2 or flair?"."""
    text = question.lower()
    if " or " in text and any(answer.lower() in text for answer in answers):
        return "closed"
    return yes_no_type(answers[0])


def without_markers(label: str, text: str, *, num_images: int) -> str:
    """Return the text without `<image>` markers: the prompt puts one per image itself.

    A numbered marker points to one of several images and stays as a word: `[image 2]`.

    Raises:
        UserError: Naming the text by its label, if there are markers, but not one per image.
    """
    num_markers = text.count("<image>")
    if num_markers not in (0, num_images):
        raise UserError(f"{label} has {num_markers} <image> markers, but {num_images} image(s)")
    return NUMBERED_MARKER.sub(r"[image \1]", MARKER.sub("", text)).strip()
