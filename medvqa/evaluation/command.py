"""`medvqa score FILE`: score an answers file, ours or another project's, by any protocol."""

import sys
from collections.abc import Sequence
from pathlib import Path

from medvqa.config.command_line import CommandParser
from medvqa.config.evaluation import Normalizer, ProtocolName
from medvqa.evaluation.score_file import DEFAULTS, ScoreOptions, score_file
from medvqa.tracking.record import write_json
from medvqa.tracking.terminal import console


def main_score(argv: Sequence[str]) -> int:
    """Score an answers file and show the table."""
    options = vars(_parser().parse_args(argv))
    target = options.pop("json")
    scores = score_file(ScoreOptions(**options))
    console().print(scores.table)
    sys.stdout.writelines(f"{line}\n" for line in scores.lines)
    if target:
        write_json(target, scores.values)
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(
        main_score,
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
    add("--normalizer", choices=[n.value for n in Normalizer], default=DEFAULTS.normalizer.value,
        help=f"of answers and references (default {DEFAULTS.normalizer.value})")  # fmt: skip
    add("--tolerance", type=float, default=DEFAULTS.numeric_tolerance, metavar="SHARE",
        help=f"relative, of numeric EM (default {DEFAULTS.numeric_tolerance:g})")  # fmt: skip
    add("--bertscore", default="minilm", metavar="MODEL",
        help="minilm (default), off, a hub id or a directory")  # fmt: skip
    add("--layers", type=int, metavar="N", help="BERTScore's layer, for a directory")
    add("--judge", nargs=2, metavar=("endpoint=URL", "model=NAME"),
        help="a served model that judges open answers, for the protocol medevalkit")  # fmt: skip
    add = parser.group("output")
    add("--json", type=Path, metavar="FILE", help="also write the scores there")
    return parser
