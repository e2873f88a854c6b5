"""`medvqa compare A B [C ...]`: answers files on the same questions -> tests, table and page.

Each file becomes the record of an untrained run, so that statistics and page are the report's.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medvqa.config.command_line import CommandParser
from medvqa.config.errors import UserError
from medvqa.config.evaluation import BertScoreConfig, EvaluationConfig, Normalizer
from medvqa.data.example import Prediction
from medvqa.evaluation.phase_scores import write_evaluation
from medvqa.evaluation.predictions import aligned, parse_columns, read_predictions
from medvqa.evaluation.score import SHOWN, Scored, score_predictions
from medvqa.report.matching import Settings
from medvqa.report.page import page
from medvqa.report.pairs import Comparison
from medvqa.report.rows import write_rows
from medvqa.report.study import Study, read_study
from medvqa.report.table import interval, probability
from medvqa.report.tables import detectable
from medvqa.report.thumbnails import NONE
from medvqa.tracking.record import FINISHED, write_csv, write_json, write_text
from medvqa.tracking.terminal import console, table

SET = "answers"
SHOWN_QUESTIONS = 20
HEADER = ("pair", "metric", "n", "difference [95 % interval]", "p (pictures: decides)", "Holm",
          "permutation p", "McNemar p (questions independent)", "detectable")  # fmt: skip


def main_compare(argv: Sequence[str]) -> int:
    """Compare answers files on the same questions."""
    options = _parser().parse_args(argv)
    if len(options.file) < 2:
        raise UserError("medvqa compare needs two or more answers files")
    config = EvaluationConfig(
        normalizer=Normalizer(options.normalizer), bertscore=BertScoreConfig(enabled=False)
    )
    answers = dict(zip(_labels(options.file), _read(options), strict=True))
    scored = {}
    for label, rows in answers.items():
        scored[label] = score_predictions(rows, config, device="cpu")
        directory = options.out / "records" / label
        # File names are no difference.
        of_set = [replace(row, source=SET, split="") for row in rows]
        place = directory / "evaluation" / "final" / SET
        write_evaluation(place, 0, of_set, scored[label], config, max_new_tokens=None)
        write_json(directory / "run.json", _record(label))
    # Records of earlier calls, with other labels, do not join.
    places = [options.out / "records" / label for label in answers]
    study = read_study(places, Settings(num_samples=options.samples))
    differing = list(_differing(answers, scored))
    write_rows(study, options.out)
    write_csv(options.out / "questions.csv", differing)
    path = options.out / "report.html"
    write_text(path, page(study, NONE, title=" against ".join(answers)))
    _show(study, differing, list(answers))
    num_questions = len(next(iter(answers.values())))
    sys.stdout.write(
        f"{len(differing)} of {num_questions} questions are right in some files only: all are in "
        f"{options.out / 'questions.csv'}; the page is {path}\n"
    )
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(
        main_compare,
        {
            "medvqa compare base.jsonl tuned.jsonl": "paired tests, a table and a page",
            "medvqa compare outputs/A outputs/B --out a_b": "the final answers of two runs",
        },
    )
    add = parser.group("answers")
    add("file", type=Path, nargs="+",
        help="two or more: JSON Lines, a JSON array, CSV, TSV, or a run directory")  # fmt: skip
    add("--columns", metavar="FIELD=NAME,...", help="the files' own column names")
    add = parser.group("tests")
    add("--normalizer", choices=[n.value for n in Normalizer], default=Normalizer.medical.value,
        help="of answers and references (default medical)")  # fmt: skip
    add("--samples", type=int, default=2000, metavar="N",
        help="sign flips of the permutation test (default 2,000)")  # fmt: skip
    add = parser.group("output")
    add("--out", type=Path, default=Path("compare"), metavar="DIR",
        help="where to write (default ./compare)")  # fmt: skip
    return parser


def _labels(files: Sequence[Path]) -> list[str]:
    """Return a short name per file: its stem, or its path where stems are equal."""
    stems = [file.stem for file in files]
    if len(set(files)) < len(files):
        raise UserError(f"{next(f for f in files if files.count(f) > 1)} is given twice")
    if len(set(stems)) == len(stems):
        return stems
    return [str(file.with_suffix("")).strip("./").replace("/", "-") for file in files]


def _read(options: argparse.Namespace) -> list[list[Prediction]]:
    """Return each file's answers in the first one's order, with one picture per question."""
    columns = parse_columns(options.columns) if options.columns else None
    places = [_answers_of(file) for file in options.file]
    files = [read_predictions(place, columns) for place in places]
    rows = [aligned(files[0], file, place) for file, place in zip(files, places, strict=True)]
    naming = next((n for n, file in enumerate(files) if file.has_clusters), None)
    if naming is None:
        sys.stdout.write("note: no file names the images: questions count as independent\n")
        return rows
    pictures = {p.id: p.cluster for p in files[naming].predictions}
    return [[replace(p, cluster=pictures[p.id]) for p in of_file] for of_file in rows]


def _answers_of(place: Path) -> Path:
    """Return the file itself, or the final answers of a run directory."""
    if not place.is_dir():
        return place
    files = sorted(place.glob("evaluation/final/*/predictions.jsonl"))
    if len(files) != 1:
        raise UserError(f"{place} holds {len(files)} sets of final answers; name one file")
    return files[0]


def _record(label: str) -> dict[str, Any]:
    """Return the run.json of answers whose origin is unknown; the label stands as ordering."""
    sizes = {"micro_batch_size": 1, "accumulation_steps": 1}
    model: dict[str, Any] = {
        "name": "answers",
        "path": None,
        "revision": None,
        "load_in_4bit": False,
        "max_pixels": None,
        "image_options": {},
    }
    return {
        "state": FINISHED,
        "run_id": label,
        "overrides": [],
        "config": {
            "model": model,
            "data": {"evaluation": {SET: {"name": "answers"}}},
            "contamination": {"action": "drop"},
            "curriculum": {"name": label},
            "training": sizes,
            "seed": 0,
        },
        "plan": {"num_steps": 0, "stages": []},
    }


def _differing(
    answers: dict[str, list[Prediction]], scored: dict[str, Scored]
) -> Iterator[dict[str, Any]]:
    """Yield the questions that some files answer rightly and others wrongly."""
    for number, rows in enumerate(zip(*answers.values(), strict=True)):
        right = [_is_right(scored[label], number) for label in answers]
        if len(set(right)) > 1:
            first = rows[0]
            shown = {"id": first.id, "type": first.answer_type, "question": first.question,
                     "reference": " | ".join(first.references)}  # fmt: skip
            for label, row, is_right in zip(answers, rows, right, strict=True):
                shown |= {label: row.prediction, f"{label} is right": is_right}
            yield shown


def _is_right(scored: Scored, number: int) -> bool:
    item = scored.items[number]
    return item.exact_match if item.closed_accuracy is None else item.closed_accuracy


def _show(study: Study, differing: Sequence[dict[str, Any]], labels: Sequence[str]) -> None:
    rows = [
        _row(c)
        for c in study.comparisons
        if c.group == ("closed" if c.metric == "closed_accuracy" else "overall")
    ]
    console().print(table("paired differences, a - b", HEADER, rows))
    if not differing:
        return
    header = ("id", "question", "reference", *labels)
    shown = [
        (row["id"], row["question"], row["reference"],
         *(("+ " if row[f"{label} is right"] else "- ") + row[label] for label in labels))
        for row in differing[:SHOWN_QUESTIONS]
    ]  # fmt: skip
    title = f"questions on which they differ: {len(shown)} of {len(differing)} (+ right, - wrong)"
    console().print(table(title, header, shown))


def _row(c: Comparison) -> tuple[str, ...]:
    place = (c.label, SHOWN[c.metric], str(c.crossed.difference.num_examples))
    if c.are_identical:
        return (*place, *("-" for _ in HEADER[len(place) :]))
    return (
        *place,
        interval(c.crossed.difference, "+"),
        probability(c.crossed.p_value),
        probability(c.p_holm),
        probability(c.permutation.p_value),
        probability(c.mcnemar[0].p_value) if c.mcnemar else "-",
        detectable(c),
    )
