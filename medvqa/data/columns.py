"""Which column of a table holds what: given, known by its name, or asked for.

A role maps to a column, to a dotted path into a cell (`annotation.answers.0`) or to a list of
these. It may also be a template of columns (`"{img_id}.jpg"`), or `{text: ...}` for all rows.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from medvqa.config.errors import UserError, printable

log = logging.getLogger(__name__)

Columns = Mapping[str, Any]
# Names that peers' tables use, in lower case; the first that a table has counts.
COMMON_NAMES = {
    "image": (
        *("image", "images", "img", "image_path", "img_path", "picture", "figure_path"),
        *("file_name", "filename", "image_file", "image_name", "img_name"),
    ),
    "question": ("question", "query", "q", "prompt", "problem"),
    "answer": ("answer", "answers", "a", "gt_answer", "label", "caption", "response", "target"),
    "conversations": ("conversations", "messages"),
    "id": ("id", "qid", "question_id", "sample_id"),
    "options": ("options", "choices"),
}
TEMPLATE_FIELD = re.compile(r"\{(\w+)\}")


def chosen_columns(given: Columns, present: Sequence[str], place: str) -> dict[str, Any]:
    """Return the given roles, and those that common names tell; the log shows the latter.

    Raises:
        UserError: If a column is absent, or image, question or answer is not
            to be found; with the columns and a setting to paste.
    """
    chosen = {role: spec for role, spec in given.items() if spec is not None}
    absent = [
        role for role, spec in chosen.items() if role != "options" and not _is_there(spec, present)
    ]
    guessed = _guesses(given, present)
    needed = ["image"]
    if "conversations" not in {**guessed, **chosen} or "question" in {**guessed, **chosen}:
        needed += ["question", "answer"]
        guessed.pop("conversations", None)
    chosen = {**guessed, **chosen}
    missing = [role for role in needed if role not in chosen]
    if absent or missing:
        raise UserError(_mismatch(chosen, [*absent, *missing], present, place))
    if guessed:
        log.info("%s: %s (by common names; data.columns= chooses others)", place, _shown(guessed))
    return chosen


def _guesses(given: Columns, present: Sequence[str]) -> dict[str, Any]:
    by_name = {name.lower(): name for name in reversed(present)}
    taken = {spec for spec in given.values() if isinstance(spec, str)}
    guesses = {}
    for role, names in COMMON_NAMES.items():
        known = [by_name[name] for name in names if name in by_name and by_name[name] not in taken]
        if role not in given and known:
            guesses[role] = known[0]
    return guesses


def roots(spec: Any, present: Sequence[str]) -> list[str]:
    """Return the columns that a role reads; empty if it names none that is there."""
    if isinstance(spec, Mapping):
        return []
    if isinstance(spec, list | tuple):
        return [root for part in spec for root in roots(part, present)]
    text = str(spec)
    if fields := TEMPLATE_FIELD.findall(text):
        return [name for name in fields if name in present]
    return [name for name in (text, text.partition(".")[0]) if name in present][:1]


def _is_there(spec: Any, present: Sequence[str]) -> bool:
    if isinstance(spec, Mapping):
        return set(spec) == {"text"}
    return bool(roots(spec, present))


def _mismatch(chosen: Columns, roles: Sequence[str], present: Sequence[str], place: str) -> str:
    """Return the message with a line to paste, which takes the free columns for what is missing."""
    used = {root for role in chosen if role not in roles for root in roots(chosen[role], present)}
    free = iter([name for name in present if name not in used])
    line = {role: spec for role, spec in chosen.items() if role not in roles}
    line |= {role: next(free, "COLUMN") for role in roles}
    names = ", ".join(map(printable, present))
    missing = ", ".join(
        role if chosen.get(role, role) == role else f"{role} ({printable(chosen[role])})"
        for role in roles
    )
    return (
        f"{place}: no column for {missing}; it has {names or 'none'}. Say which holds "
        f"what, such as 'data.columns={{{_shown(line)}}}'"
    )


def _shown(columns: Columns) -> str:
    return ", ".join(f"{role}: {printable(spec)}" for role, spec in columns.items())


def cell(row: Mapping[str, Any], spec: Any) -> Any:
    """Return what a row holds for a role; None if nothing."""
    if isinstance(spec, Mapping):
        return spec.get("text")
    if isinstance(spec, list | tuple):
        values = [cell(row, part) for part in spec]
        return [value for value in values if value is not None and value != ""]
    text = str(spec)
    if TEMPLATE_FIELD.search(text):
        return TEMPLATE_FIELD.sub(lambda match: str(row.get(match[1], "")), text)
    if text in row:
        return row[text]
    value: Any = row
    for key in text.split("."):
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list | tuple) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return value
