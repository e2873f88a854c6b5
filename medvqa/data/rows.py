"""What the loaders share about a row: its texts, and the rule for its answer type."""

from collections.abc import Mapping
from typing import Any

from medvqa.example import AnswerType, UserError


def row_texts(place: str, row: Mapping[str, Any], *names: str) -> dict[str, str]:
    """Return the named cells as stripped texts; numbers become texts.

    Raises:
        UserError: Naming the place, if one is missing, empty or not a text or number.
    """
    texts = {}
    for name in names:
        value = row.get(name)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise UserError(f"{place} has no {name}")
        if isinstance(value, bool):
            value = "yes" if value else "no"
        if not isinstance(value, str | int | float):
            raise UserError(f"{place}: {name} is {type(value).__name__}, not a text: {value!r:.80}")
        texts[name] = str(value).strip()
    return texts


def yes_no_type(answer: str) -> AnswerType:
    """Return `closed` for an answer of yes or no, the rule where a set states no type."""
    return "closed" if answer.strip().lower().rstrip(".") in ("yes", "no") else "open"
