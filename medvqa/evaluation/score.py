"""`medvqa score FILE`: score a predictions file, ours or anybody's."""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvqa.config.errors import UserError
from medvqa.config.evaluation import BertScoreConfig, EvaluationConfig, Normalizer
from medvqa.data.example import AnswerType, Prediction, Score
from medvqa.evaluation.metrics import yes_or_no
from medvqa.evaluation.scoring import Summary, score_predictions
from medvqa.tracking.record import write_json

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger(__name__)

# What others call our fields; the first name found counts.
REFERENCES = ("references", "reference", "answers", "answer", "label", "ground_truth", "gt")
PREDICTIONS = ("prediction", "pred", "predicted", "response", "output")
TYPES = ("answer_type", "qtype", "question_type")
CLUSTERS = ("cluster", "image_id", "image", "image_name")
SHOWN = {
    "exact_match": "EM",
    "f1": "F1",
    "numeric_exact_match": "numeric EM",
    "closed_accuracy": "closed acc.",
    "bertscore_f1": "BERTScore F1",
}


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
    if stated == "open":
        return "open"
    if stated == "closed":
        return "closed"
    if stated is not None:
        raise UserError(f"{path}, line {number}: type {stated!r} is neither open nor closed")
    return "closed" if all(yes_or_no(r) == r.strip().lower() for r in references) else "open"


def summary_table(summary: Summary, *, title: str) -> "Table":
    """Return a table of groups by metrics: mean, 95 % interval, n."""
    from rich.table import Table

    shown = [m for m in SHOWN if any(m in scores for scores in summary.values())]
    table = Table("", *(SHOWN[m] for m in shown), title=title, title_justify="left")
    for group, scores in summary.items():
        table.add_row(group, *(cell(scores.get(metric)) for metric in shown))
    return table


def cell(score: Score | None) -> str:
    """Return a score as the tables show it."""
    if score is None:
        return "-"
    return f"{score.mean:.3f} [{score.low:.3f}, {score.high:.3f}] n={score.num_examples}"


def main_score(argv: Sequence[str]) -> int:
    """Score a predictions file and show the table."""
    from rich.console import Console

    parser = argparse.ArgumentParser("medvqa score", description=main_score.__doc__)
    parser.add_argument("file", type=Path, help="predictions, one JSON object a line")
    parser.add_argument("--normalizer", choices=[n.value for n in Normalizer], default="squad")
    parser.add_argument("--bertscore", default="minilm", help="minilm, off, hub id or directory")
    parser.add_argument("--layers", type=int, help="BERTScore's layer, for a directory")
    parser.add_argument("--tolerance", type=float, default=0.05, help="relative, numeric EM")
    parser.add_argument("--json", type=Path, help="also write the scores there")
    options = parser.parse_args(argv)
    bertscore = BertScoreConfig(
        enabled=options.bertscore != "off", model=options.bertscore, num_layers=options.layers
    )
    config = EvaluationConfig(
        normalizer=Normalizer(options.normalizer),
        numeric_tolerance=options.tolerance,
        bertscore=bertscore,
    )
    predictions, notes = read_predictions(options.file)
    scored = score_predictions(predictions, config, device="cpu")
    console = Console(width=None if Console().is_terminal else 160)
    console.print(summary_table(scored.summary, title=f"{options.file} ({options.normalizer})"))
    for note in notes:
        console.print(f"note: {note}", highlight=False)
    if options.json:
        summary = {g: {m: asdict(s) for m, s in ms.items()} for g, ms in scored.summary.items()}
        write_json(options.json, {"summary": summary, "bertscore": scored.bertscore})
    return 0
