"""A finished run's answers -> the files of the MediaEval Medico tasks.

Fields, files and the choice of questions follow the challenge's README of 2026 and its template
`submission_task1.py`: github.com/simula/MediaEval-Medico-2026. Subtask 1 asks the first 1,500 rows
of Kvasir-VQA-x1's test split after `shuffle(seed=42)`; subtask 2 does so among the rows of
complexity 1. The official tool runs the template itself; this file is what it would write.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medvqa.config.errors import UserError
from medvqa.evaluation.phase_scores import read_answers
from medvqa.export.atomic import check_target, new_directory
from medvqa.models.trained import EXPORT_FILE, Kind, Trained, read_trained
from medvqa.tracking.record import write_json, write_lines

log = logging.getLogger(__name__)

SOURCE = "kvasir_vqa_x1"
NUM_QUESTIONS, SHUFFLE_SEED = 1500, 42
TASK_2_LEVEL = "1"
ROW_ID = re.compile(r"test-(\d+)")
TASK_1, TASK_2 = "predictions_1.json", "submission_task2.jsonl"
TASK_1_FIELDS = ("index", "img_id", "question", "answer")
TASK_2_FIELDS = ("val_id", "img_id", "question", "answer", "textual_explanation")
# Keys of the template, which the team fills in.
SUBMISSION_INFO = (
    *("Participant_Names", "Affiliations", "Contact_emails", "Team_Name", "Country"),
    "Notes_to_organizers",
)


def write_medico(run: Path, target: Path) -> Path:
    """Write the submission files of a run that has answered the whole test split.

    Raises:
        UserError: If the run has not, or the directory holds something else than an export.
    """
    trained = read_trained(run)
    if trained.kind is not Kind.run:
        raise UserError(f"{run} is an export; give the run itself")
    check_target(target)
    rows = _test_rows(trained)
    tasks = {"task_1": task_1(rows)}
    if any(row.get("explanation") for row in rows):
        tasks["task_2"] = task_2(rows)
    else:
        log.info(
            "%s is not written: the run records no explanations, which subtask 2 requires", TASK_2
        )
    with new_directory(target) as directory:
        info = dict.fromkeys(SUBMISSION_INFO, "")
        answers = {"submission_info": info, "predictions": tasks["task_1"]}
        write_json(directory / TASK_1, answers)
        if "task_2" in tasks:
            write_lines(directory / TASK_2, tasks["task_2"])
        counts = {name: len(answers) for name, answers in tasks.items()}
        write_json(directory / EXPORT_FILE, {"kind": "medico", "run": trained.name, **counts})
    return target


def _test_rows(trained: Trained) -> list[dict[str, Any]]:
    """Return the answers to the whole test split, in the order of the data set."""
    data = trained.values["config"]["data"]
    names = [
        name
        for name, source in data["evaluation"].items()
        if (source["name"], source["split"]) == (SOURCE, "test")
    ]
    if not names:
        raise UserError(
            f"{trained.directory} has not answered {SOURCE}'s test split; evaluate "
            f"data.evaluation.test.name={SOURCE} without a limit"
        )
    if data["evaluation"][names[0]].get("limit") or data.get("evaluation_limit"):
        raise UserError(
            f"{trained.directory} has answered a sample of {SOURCE}'s test split; the challenge "
            "draws its questions from all rows, so evaluate without a limit"
        )
    path = trained.directory / "evaluation" / "final" / names[0] / "predictions.jsonl"
    by_number = {}
    for row in read_answers(path, "id", "cluster", "question", "prediction"):
        match = ROW_ID.fullmatch(str(row["id"]))
        if match is None:
            raise UserError(f"{path}: id {row['id']!r} names no row of the test split")
        by_number[int(match[1])] = row
    missing = sorted(set(range(max(by_number, default=0) + 1)) - by_number.keys())
    if missing:
        raise UserError(f"{path} has no answer to row {missing[0]} ({len(missing)} such rows)")
    return [by_number[number] for number in sorted(by_number)]


def _official(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the first rows after the shuffle that `datasets` makes with the challenge's seed."""
    import numpy as np

    order = np.random.default_rng(SHUFFLE_SEED).permutation(len(rows))
    return [rows[int(number)] for number in order[:NUM_QUESTIONS]]


def task_1(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries of subtask 1."""
    return [
        dict(zip(TASK_1_FIELDS, (index, *_answer(row)), strict=True))
        for index, row in enumerate(_official(rows))
    ]


def task_2(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries of subtask 2: explanations, and the confidence where it is recorded.

    Raises:
        UserError: If an answer has no explanation, or a confidence is outside [0, 1].
    """
    chosen = _official([row for row in rows if row.get("level") == TASK_2_LEVEL])
    entries = []
    for number, row in enumerate(chosen):
        explanation = str(row.get("explanation") or "").strip()
        if not explanation:
            raise UserError(f"{row['id']} has no explanation, which subtask 2 requires")
        entry = dict(zip(TASK_2_FIELDS, (number, *_answer(row), explanation), strict=True))
        confidence = row.get("confidence")
        if confidence is not None:
            if not 0 <= float(confidence) <= 1:
                raise UserError(f"{row['id']}: confidence {confidence} is not in [0, 1]")
            entry["confidence_score"] = float(confidence)
        entries.append(entry)
    return entries


def _answer(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return `img_id`, `question` and `answer`."""
    return str(row["cluster"]), str(row["question"]), str(row["prediction"])
