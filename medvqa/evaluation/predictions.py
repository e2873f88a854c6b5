"""Rows of an answers file, ours or another project's -> predictions, and what it leaves open."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

from medvqa.config.errors import UserError, about
from medvqa.data.example import AnswerType, Prediction
from medvqa.data.options import options_of
from medvqa.data.rows import as_list
from medvqa.evaluation.answer_rows import Row, read_rows
from medvqa.evaluation.metrics import is_yes_or_no
from medvqa.evaluation.normalize import fold

# What others call our fields; the first name that a row has counts.
COLUMNS = {
    "prediction": ("prediction", "pred", "answer_pred", "pred_answer", "model_answer", "response",
                   "text", "predicted", "output", "generated_answer"),
    "reference": ("references", "reference", "answers", "answer", "gt", "gt_answer", "gt_ans",
                  "answer_gt", "label", "ground_truth", "target"),
    "type": ("answer_type", "qtype", "question_type"),
    "cluster": ("cluster", "image_id", "image", "image_name", "img_name", "img_id"),
    "id": ("id", "question_id", "qid"),
    "question": ("question", "prompt"),
    "options": ("options", "choices"),
    "cut": ("cut", "truncated", "finish_reason"),
    "level": ("level", "complexity"),
    "split": ("split",),
    "source": ("source", "dataset"),
}  # fmt: skip
REQUIRED = ("prediction", "reference")  # of others, an empty value is none
MANY = 10  # names or ids in a message
NO_TEXT = {"nan", "null"}  # how pandas and others write a missing value into a table


class Answers(NamedTuple):
    """A file's answers, what the file leaves open, and whether every row names its image."""

    predictions: list[Prediction]
    notes: list[str]
    has_clusters: bool


def read_predictions(path: Path, columns: Mapping[str, str] | None = None) -> Answers:
    """Return the file's answers.

    Args:
        path: JSON Lines, a JSON array, CSV or TSV.
        columns: Our field (a key of `COLUMNS`) -> the file's name for it.

    Raises:
        UserError: Naming file and line, if a row cannot be read or lacks a value.
    """
    rows = read_rows(path)
    if not rows:
        raise UserError(f"{path} holds no predictions")
    known = COLUMNS | {field: (name,) for field, name in (columns or {}).items()}
    records = [_Record(row, known) for row in rows]
    predictions = [record.prediction(n, path) for n, record in enumerate(records, start=1)]
    notes = [*_notes(records, predictions), *_other_columns(rows[0], known)]
    return Answers(predictions, notes, all("cluster" in record.names for record in records))


def parse_columns(text: str) -> dict[str, str]:
    """Return the mapping of `--columns prediction=NAME,reference=NAME`."""
    pairs = [pair.partition("=") for pair in text.split(",")]
    unknown = [field for field, _, name in pairs if field not in COLUMNS or not name]
    if unknown:
        raise UserError(
            f"--columns {unknown[0]}: write FIELD=NAME; the fields are {', '.join(COLUMNS)}"
        )
    return {field: name for field, _, name in pairs}


def aligned(answers: Answers, others: Answers, path: Path) -> list[Prediction]:
    """Return the second file's answers to the first one's questions, in its order.

    Types, references and pictures are the first file's, so that both are scored alike.

    Raises:
        UserError: If the files do not hold the same questions, each once.
    """
    by_id = {prediction.id: prediction for prediction in others.predictions}
    ids = [prediction.id for prediction in answers.predictions]
    if len(by_id) != len(others.predictions) or len(set(ids)) != len(ids):
        raise UserError(f"{path}: some id stands in several rows, so answers cannot be paired")
    missing = [name for name in ids if name not in by_id]
    extra = [name for name in by_id if name not in set(ids)]
    if missing or extra:
        shown = ", ".join([*missing, *extra][:MANY])
        raise UserError(
            f"{path} answers other questions: it lacks {len(missing)} ids and has {len(extra)} "
            f"more ({shown})"
        )
    rows = []
    for prediction in answers.predictions:
        other = by_id[prediction.id]
        rows.append(replace(prediction, prediction=other.prediction, cut=other.cut))
        if set(map(fold, prediction.references)) != set(map(fold, other.references)):
            raise UserError(
                f"{path}, id {prediction.id}: the reference is {other.references[0]!r}, in the "
                f"first file it is {prediction.references[0]!r}; is the order another?"
            )
    return rows


class _Record:
    """A row of the file under our names; `names` has the file's name of each field that it has."""

    def __init__(self, row: Row, columns: Mapping[str, Sequence[str]]) -> None:
        self.row, self._columns = row, columns
        present = {
            field: next((name for name in names if name in row.values), None)
            for field, names in columns.items()
        }
        self.names = {
            field: name
            for field, name in present.items()
            if name is not None and (field in REQUIRED or not _is_missing(row.values[name]))
        }

    def prediction(self, number: int, path: Path) -> Prediction:
        name, stored = self._required("reference")
        many = as_list(stored)
        references = tuple(self._answer(name, one) for one in many)
        if not references:
            raise UserError(f"{self.row.place} has an empty list of references")
        return Prediction(
            id=self._text("id", str(number)),
            question=self._text("question"),
            references=references,
            prediction=self._answer(*self._required("prediction")),
            answer_type=self.type or yes_no_type(references),
            source=self._text("source", path.stem),
            split=self._text("split"),
            cluster=self._text("cluster", f"line {number}"),
            options=self._options(),
            cut=self._cut(),
            level=self._text("level"),
        )

    def _text(self, field: str, default: str = "") -> str:
        if field not in self.names:
            return default
        name = self.names[field]
        return self._encodable(name, str(self.row.values[name]))

    def _required(self, field: str) -> tuple[str, Any]:
        if field in self.names:
            return self.names[field], self.row.values[self.names[field]]
        keys = list(map(str, self.row.values))
        more = f" and {len(keys) - MANY} more" if keys[MANY:] else ""
        raise UserError(
            f"{self.row.place} has none of {', '.join(self._columns[field])}; it has "
            f"{', '.join(keys[:MANY])}{more}; name the column: --columns {field}=NAME"
        )

    def _answer(self, name: str, value: Any) -> str:
        """Return an answer as text: true is yes, false is no."""
        if isinstance(value, bool):
            return "yes" if value else "no"
        if _is_missing(value) and str(value).strip():  # a blank answer is an answer
            raise UserError(f"{self.row.place}: {name} is {json.dumps(value)}, which is no answer")
        if isinstance(value, list | dict):
            raise UserError(f"{self.row.place}: {name} is a {type(value).__name__}, not one text")
        return self._encodable(name, str(value))

    def _encodable(self, name: str, text: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{self.row.place}: {name} holds half a character ({error})") from error
        return text

    @property
    def type(self) -> AnswerType | None:
        """What the row states, if it does."""
        stated = self._text("type").strip().lower()
        if stated in get_args(AnswerType):
            return cast(AnswerType, stated)
        # `question_type` is often what the question is about.
        if self.names.get("type", "question_type") == "question_type":
            return None
        raise UserError(f"{self.row.place}: type {stated!r} is neither open nor closed")

    def _options(self) -> tuple[str, ...]:
        name = self.names.get("options")
        stored = self.row.values[name] if name else None
        if isinstance(stored, str) and stored.strip()[:1] not in ("[", "{"):
            stored = [part.strip() for part in stored.split("|") if part.strip()]
        with about(f"{self.row.place}: {name}"):
            return options_of(stored)

    def _cut(self) -> bool | None:
        stored = self._text("cut", "none").lower()
        return None if stored in ("none", "") else stored in ("true", "1", "length")


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in ("", *NO_TEXT)
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def yes_no_type(references: Sequence[str]) -> AnswerType:
    """Return the type where none is stated: a question is closed if its answer is yes or no."""
    return "closed" if all(map(is_yes_or_no, references)) else "open"


def _notes(records: Sequence[_Record], predictions: Sequence[Prediction]) -> list[str]:
    """Return what the file leaves open."""
    total = len(records)
    counts = Counter(prediction.id for prediction in predictions)
    duplicates = [name for name, count in counts.items() if count > 1]
    shown = ", ".join(duplicates[:MANY]) + (", ..." if duplicates[MANY:] else "")
    lines = {
        f"of {total} rows name no type: yes/no answers count as closed": sum(
            record.type is None for record in records
        ),
        f"of {total} rows name no image: intervals take questions as independent, which is too "
        "narrow where images repeat": sum("cluster" not in record.names for record in records),
        f"ids stand in several rows; each row counts: {shown}": len(duplicates),
        "answers are empty": sum(not p.prediction.strip() for p in predictions),
        "references are empty": sum(not "".join(p.references).strip() for p in predictions),
    }
    notes = [f"{number} {line}" for line, number in lines.items() if number]
    known = [p.cut for p in predictions if p.cut is not None]
    cut = f"{sum(known)} of {len(known)} answers were cut at the limit of new tokens"
    return [
        *notes,
        cut if known else "cut answers: unknown; no row has a column cut or finish_reason",
    ]


def _other_columns(row: Row, columns: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield which columns could have been read as answer or reference too."""
    for field in ("prediction", "reference"):
        used, *others = (name for name in columns[field] if name in row.values)
        if others:
            yield (
                f"each {field} is read from {used}, not from {', '.join(others)}; "
                f"--columns {field}=NAME changes that"
            )
