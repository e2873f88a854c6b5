"""`medvqa score FILE`: score an answers file, ours or another project's, by any protocol."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medvqa.config.command_line import CommandParser
from medvqa.config.errors import UserError
from medvqa.config.evaluation import BertScoreConfig, EvaluationConfig, Normalizer, ProtocolName
from medvqa.data.example import Prediction, Score
from medvqa.evaluation.comparison import run_mean
from medvqa.evaluation.predictions import Answers, aligned, parse_columns, read_predictions
from medvqa.evaluation.protocols.judge import agreement, parse_judge
from medvqa.evaluation.protocols.protocol import is_closed, item_values
from medvqa.evaluation.protocols.table import (
    PROTOCOLS,
    description,
    gains,
    overview_table,
    protocol_table,
    score_protocols,
)
from medvqa.evaluation.score import score_predictions, summary_table
from medvqa.tracking.record import write_json
from medvqa.tracking.terminal import console

JUDGED = ProtocolName.medevalkit


def main_score(argv: Sequence[str]) -> int:
    """Score an answers file and show the table."""
    options = _parser().parse_args(argv)
    names = _protocols(options.protocol)
    columns = parse_columns(options.columns) if options.columns else None
    answers = read_predictions(options.file, columns)
    others = None
    if options.against:
        others = aligned(answers, read_predictions(options.against, columns), options.against)
    stored: dict[str, Any] = {}
    if names == [ProtocolName.medvqa] and others is None:
        stored = _own_scores(answers, options)
    else:
        stored = _protocol_scores(names, answers, others, options)
    for note in answers.notes:
        sys.stdout.write(f"note: {note}\n")
    if options.json:
        write_json(options.json, stored)
    return 0


def _parser() -> CommandParser:
    defaults = EvaluationConfig()
    parser = CommandParser(
        "score",
        main_score.__doc__,
        {
            "medvqa score answers.jsonl": "by type of question",
            "medvqa score answers.csv --columns prediction=out,reference=gt": "other column names",
            "medvqa score answers.jsonl --protocol all": "one row per protocol",
            "medvqa score tuned.jsonl --protocol all --against base.jsonl": "and the gain",
        },
    )
    add = parser.group("answers")
    add("file", type=Path, help="answers: JSON Lines, a JSON array, CSV or TSV")
    add("--columns", metavar="FIELD=NAME,...", help="the file's own column names")
    add("--types", choices=["labels", "yes_no"], help="how closed questions are recognised")
    add("--against", type=Path, metavar="FILE", help="a second answers file; adds the gain over it")
    add = parser.group("scores")
    protocols = ", ".join(name.value for name in ProtocolName)
    add("--protocol", default="medvqa", metavar="NAME,...", help=f"{protocols}; or all")
    add("--normalizer", choices=[n.value for n in Normalizer], default=defaults.normalizer.value,
        help=f"of answers and references (default {defaults.normalizer.value})")  # fmt: skip
    add("--tolerance", type=float, default=defaults.numeric_tolerance, metavar="SHARE",
        help=f"relative, of numeric EM (default {defaults.numeric_tolerance:g})")  # fmt: skip
    add("--bertscore", default="minilm", metavar="MODEL",
        help="minilm (default), off, a hub id or a directory")  # fmt: skip
    add("--layers", type=int, metavar="N", help="BERTScore's layer, for a directory")
    add("--judge", nargs=2, metavar=("endpoint=URL", "model=NAME"),
        help="a served model that judges open answers, for the protocol medevalkit")  # fmt: skip
    add = parser.group("output")
    add("--json", type=Path, metavar="FILE", help="also write the scores there")
    return parser


def _protocols(text: str) -> list[ProtocolName]:
    if text == "all":
        return list(ProtocolName)
    known = {name.value: name for name in ProtocolName}
    unknown = [name for name in text.split(",") if name not in known]
    if unknown:
        raise UserError(f"--protocol {unknown[0]} is none of {', '.join(known)}, all")
    return [known[name] for name in text.split(",")]


def _own_scores(answers: Answers, options: argparse.Namespace) -> dict[str, Any]:
    config = EvaluationConfig(
        normalizer=Normalizer(options.normalizer),
        numeric_tolerance=options.tolerance,
        bertscore=BertScoreConfig(
            enabled=options.bertscore != "off", model=options.bertscore, num_layers=options.layers
        ),
    )
    scored = score_predictions(_typed(answers.predictions, options), config, device="cpu")
    title = f"{options.file} ({options.normalizer})"
    console().print(summary_table([("", scored.summary)], title=title))
    summary = {g: {m: asdict(s) for m, s in ms.items()} for g, ms in scored.summary.items()}
    return {"summary": summary, "bertscore": scored.bertscore}


def _typed(predictions: list[Prediction], options: argparse.Namespace) -> list[Prediction]:
    from dataclasses import replace

    if options.types != "yes_no":
        return predictions
    return [
        replace(p, answer_type="closed" if is_closed(p, "yes_no") else "open") for p in predictions
    ]


def _protocol_scores(
    names: list[ProtocolName],
    answers: Answers,
    others: list[Prediction] | None,
    options: argparse.Namespace,
) -> dict[str, Any]:
    num_samples = EvaluationConfig().bootstrap_samples
    predictions = answers.predictions
    scores = score_protocols(names, predictions, types=options.types, num_samples=num_samples)
    gain: dict[str, dict[str, Score]] | None = None
    if others is not None:
        gain = {
            name.value: gains(
                PROTOCOLS[name], predictions, others, types=options.types, num_samples=num_samples
            )
            for name in names
        }
    lines: list[str] = []
    if options.judge and JUDGED in names:
        lines = _judge(predictions, scores[JUDGED.value], options)
    title = str(options.file)
    if len(names) > 1:
        console().print(overview_table(scores, gain, title=title))
    else:
        name = names[0]
        change = gain[name.value] if gain is not None else None
        console().print(protocol_table(PROTOCOLS[name], scores[name.value], change, title=title))
    for name in names:
        lines += description(PROTOCOLS[name], has_judge=bool(options.judge))
    sys.stdout.write("\n".join(lines) + "\n")
    return {
        kind: {name: {m: asdict(s) for m, s in values.items()} for name, values in part.items()}
        for kind, part in (("protocols", scores), ("gains", gain or {}))
    }


def _judge(
    predictions: list[Prediction], scores: dict[str, Score], options: argparse.Namespace
) -> list[str]:
    """Add the judge's metrics to MedEvalKit's: open answers are judged, closed ones are not."""
    protocol = PROTOCOLS[JUDGED]
    judge = parse_judge(options.judge, options.file.with_name(f"{options.file.name}.judge.jsonl"))
    types = options.types or protocol.types
    opened = [p for p in predictions if not is_closed(p, types)]
    verdicts = judge.verdicts(opened)
    by_place = iter(verdicts)
    items = item_values(protocol, predictions, types)
    totals = [
        item["close acc"] if is_closed(p, types) else float(bool(next(by_place)))
        for p, item in zip(predictions, items, strict=True)
    ]
    for metric, values, rows in (
        ("open acc (judge)", [float(bool(verdict)) for verdict in verdicts], opened),
        ("total acc (judge)", totals, predictions),
    ):
        if rows:
            scores[metric] = run_mean(values, [p.cluster for p in rows])
    rules = [item for p, item in zip(predictions, items, strict=True) if not is_closed(p, types)]
    return [agreement(verdicts, rules, "em")] if opened else []
