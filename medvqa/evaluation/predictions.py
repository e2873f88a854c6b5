"""Read a predictions file, ours or another project's."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from medvqa.config.errors import UserError
from medvqa.data.example import AnswerType, Prediction
from medvqa.evaluation.metrics import yes_or_no

# What others call our fields; the first name found counts.
REFERENCES = ("references", "reference", "answers", "answer", "label", "ground_truth", "gt")
PREDICTIONS = ("prediction", "pred", "predicted", "response", "output")
TYPES = ("answer_type", "qtype", "question_type")
CLUSTERS = ("cluster", "image_id", "image", "image_name")


def read_predictions(path: Path) -> tuple[list[Prediction], list[str]]:
    """Return the file's predictions, and notes on what it left open.

    Raises:
        UserError: Naming file and line, if a line is no JSON object or lacks a field.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from error
    rows = [(n, _row(path, n, line)) for n, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise UserError(f"{path} holds no predictions")
    notes = []
    untyped = sum(not any(name in row for name in TYPES) for _, row in rows)
    if untyped:
        notes.append(f"{untyped} of {len(rows)} rows name no type: yes/no answers count as closed")
    unclustered = sum(not any(name in row for name in CLUSTERS) for _, row in rows)
    if unclustered:
        notes.append(
            f"{unclustered} of {len(rows)} rows name no image: intervals take questions as "
            "independent, which is too narrow where images repeat"
        )
    return [_prediction(path, number, row) for number, row in rows], notes


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}, line {number} is no JSON (cut off?): {error}") from error
    if not isinstance(row, dict):
        raise UserError(f"{path}, line {number} is no JSON object")
    return row


def _prediction(path: Path, number: int, row: Mapping[str, Any]) -> Prediction:
    wanted = row[_field(path, number, row, REFERENCES)]
    references = tuple(map(str, wanted)) if isinstance(wanted, list) else (str(wanted),)
    if not references:
        raise UserError(f"{path}, line {number} has an empty list of references")
    cluster = next((str(row[name]) for name in CLUSTERS if name in row), f"line {number}")
    return Prediction(
        id=str(row.get("id", number)),
        question=str(row.get("question", "")),
        references=references,
        prediction=str(row[_field(path, number, row, PREDICTIONS)]),
        answer_type=_type(path, number, row, references),
        source=str(row.get("source", path.stem)),
        split=str(row.get("split", "")),
        cluster=cluster,
    )


def _field(path: Path, number: int, row: Mapping[str, Any], names: Sequence[str]) -> str:
    for name in names:
        if name in row:
            return name
    raise UserError(
        f"{path}, line {number} has none of {', '.join(names)}; it has {', '.join(row)}"
    )


def _type(path: Path, number: int, row: Mapping[str, Any], references: Sequence[str]) -> AnswerType:
    stated = next((str(row[name]).strip().lower() for name in TYPES if name in row), None)
    if stated in get_args(AnswerType):
        return cast(AnswerType, stated)
    if stated is not None:
        raise UserError(f"{path}, line {number}: type {stated!r} is neither open nor closed")
    return "closed" if all(yes_or_no(r) == r.strip().lower() for r in references) else "open"
