"""`medvqa score FILE`: score a predictions file, ours or another project's."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from medvqa.config.evaluation import BertScoreConfig, EvaluationConfig, Normalizer
from medvqa.evaluation.predictions import read_predictions
from medvqa.evaluation.score import score_predictions, summary_table
from medvqa.tracking.record import write_json
from medvqa.tracking.terminal import console


def main_score(argv: Sequence[str]) -> int:
    """Score a predictions file and show the table."""
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
    title = f"{options.file} ({options.normalizer})"
    console().print(summary_table([("", scored.summary)], title=title))
    sys.stdout.writelines(f"note: {note}\n" for note in notes)
    if options.json:
        summary = {g: {m: asdict(s) for m, s in ms.items()} for g, ms in scored.summary.items()}
        write_json(options.json, {"summary": summary, "bertscore": scored.bertscore})
    return 0
