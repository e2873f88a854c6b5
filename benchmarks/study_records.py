"""What the studies keep of their runs: config choices, and how each question was answered.

No picture and no text of a question is in a record.
"""

import gzip
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks.runs import Row
from medvqa.config.evaluation import Normalizer
from medvqa.evaluation.normalize import normalize
from medvqa.tracking.record import read_json, read_lines

MACHINE = ("python", "platform", "num_cpus", "gpus")
KINDS = {"o": "open", "c": "closed"}  # by the letter that a record holds per question
YES_OR_NO = ("yes", "no")
plain = partial(normalize, normalizer=Normalizer["squad"])


def finished_runs(directories: Sequence[Path]) -> tuple[dict[Path, Row], list[str], Row]:
    """Return the finished runs' run.json, the other runs' names, and the last one's machine."""
    paths = sorted(path for directory in directories for path in directory.rglob("run.json"))
    runs = {path.parent: read_json(path) for path in paths}
    finished = {place: run for place, run in runs.items() if run.get("state") == "finished"}
    if not finished:
        raise SystemExit(f"no finished run in {', '.join(map(str, directories))}")
    environment = list(finished.values())[-1]["environment"]
    unfinished = [place.name for place in runs if place not in finished]
    return finished, unfinished, environment


def predictions(directory: Path) -> Iterator[tuple[str, str, list[Row]]]:
    """Yield phase, set and answers, in the order of their ids, of each evaluation of a run."""
    for path in sorted(directory.glob("evaluation/*/*/predictions.jsonl")):
        yield *path.parts[-3:-1], sorted(read_lines(path), key=lambda row: str(row["id"]))


def keep_questions(sets: Row, name: str, questions: Row, directory: Path) -> None:
    """Keep what is known of a set's questions, which must be the same for all runs."""
    if sets.setdefault(name, questions) != questions:
        raise SystemExit(f"{directory}: {name} has other questions than the first run's")


# --- Exact match alone, as bits: phantoms and VQA-RAD on the small base --------------------------


def to_hex(bits: list[bool]) -> str:
    """Return the bits as hexadecimal digits, the first question first."""
    text = "".join("1" if bit else "0" for bit in bits)
    return f"{int('1' + text, 2):x}"


def from_hex(digits: str) -> list[int]:
    """Return the bits of `to_hex`."""
    return [int(bit) for bit in f"{int(digits, 16):b}"[1:]]


def bits_of(directories: Sequence[Path]) -> Row:
    """Return the record of all finished runs below the directories."""
    sets: Row = {}
    finished, unfinished, environment = finished_runs(directories)
    runs = [bits_of_run(directory, run, sets) for directory, run in finished.items()]
    for questions in sets.values():  # pictures as numbers: their names say nothing here
        names = sorted(set(questions["clusters"]))
        questions["clusters"] = [names.index(name) for name in questions["clusters"]]
    return {
        "environment": {name: environment[name] for name in MACHINE},
        "packages": environment["packages"],
        "unfinished": unfinished,
        "sets": sets,
        "runs": runs,
    }


def bits_of_run(directory: Path, run: Row, sets: Row) -> Row:
    """Return what the record keeps of a finished run; questions go into `sets` once."""
    exact_match: dict[str, Row] = defaultdict(dict)
    yes_or_no: dict[str, Row] = defaultdict(dict)
    for phase, name, rows in predictions(directory):
        questions = {
            "ids_sha256": hashlib.sha256("\n".join(row["id"] for row in rows).encode()).hexdigest(),
            "types": "".join(row["answer_type"][0] for row in rows),
            "clusters": [row["cluster"] for row in rows],
        }
        keep_questions(sets, name, questions, directory)
        exact_match[phase][name] = to_hex([row["exact_match"] == 1 for row in rows])
        answers = {k: [r["prediction"] for r in rows if r["answer_type"] == k]
                   for k in KINDS.values()}  # fmt: skip
        # Yes and no are the form that only closed-ended questions ask for.
        yes_or_no[phase][name] = {
            kind: sum(plain(answer) in YES_OR_NO for answer in own) for kind, own in answers.items()
        }
    config, batch = run["config"], run["config"]["training"]
    return {
        "directory": directory.name,
        "run_id": run["run_id"],
        "arm": config["curriculum"]["name"],
        "seed": config["seed"],
        "max_steps": batch["max_steps"],
        "batch_size": batch["micro_batch_size"] * batch["accumulation_steps"],
        "num_steps": run["plan"]["num_steps"],
        "order_sha256": run["plan"]["order_sha256"],
        "commit": run["git"]["commit"],
        "dirty": run["git"]["dirty"],
        **{name: run[name] for name in ("started", "ended", "num_starts")},
        # How long a grid's worker held the cell; None for a run that no grid started.
        "cell_seconds": read_json(directory / "status.json").get("seconds"),
        "seconds": run["seconds"],
        "final_loss": run["training"]["final_loss"],
        "exact_match": exact_match,
        "yes_or_no": yes_or_no,
    }


# --- All scores, by fold: the speaking base -------------------------------------------------------


def scores_of(directories: Sequence[Path]) -> Row:
    """Return the record of all finished cells below the directories."""
    sets: Row = {}
    finished, unfinished, environment = finished_runs(directories)
    cells = [scores_of_cell(directory, run, sets) for directory, run in finished.items()]
    known = {name: environment.get(name) for name in MACHINE}
    return {"environment": known, "unfinished": len(unfinished), "sets": sets, "cells": cells}


def scores_of_cell(directory: Path, run: Row, sets: Row) -> Row:
    """Return a finished cell; what its questions are goes into `sets` once per fold or pool."""
    config = run["config"]
    fold = config["data"]["split"].removeprefix("train_")
    if config["data"]["name"] == "phantom":
        fold = f"pool{config['data']['seed']}"
    phases = {}
    for phase, name, rows in predictions(directory):
        if name != "test":
            continue
        questions = {
            "ids": [row["id"] for row in rows],
            "kinds": [row["answer_type"] for row in rows],
            "clusters": [f"{fold} {row['cluster']}" for row in rows],  # pools repeat names
            "labels": [label(row) for row in rows],
        }
        keep_questions(sets, fold, questions, directory)
        phases[phase] = {
            "exact_match": "".join("1" if row["exact_match"] else "0" for row in rows),
            "f1": [round(row["f1"], 3) for row in rows],
            "yes": [share_of_yes(row) for row in rows if label(row)],
        }
    return {
        "arm": config["curriculum"]["name"],
        "fold": fold,
        "seed": config["seed"],
        **{name: config["training"][name] for name in ("max_steps", "learning_rate")},
        "final_loss": run["training"]["final_loss"],
        "order_sha256": run["plan"]["order_sha256"],
        "engine": run["compute_path"]["engine"],
        "seconds": run["seconds"],
        "phases": phases,
    }


def label(row: Row) -> str | None:
    """Return yes or no where that is the reference of a closed question."""
    text = plain(row["references"][0])
    return text if row["answer_type"] == "closed" and text in YES_OR_NO else None


def share_of_yes(row: Row) -> float | None:
    """Return P(yes) / (P(yes) + P(no)) of a question that is answered with one of both."""
    if not row["choice_probs"]:
        return None
    yes, no = (float(row["choice_probs"][name]) for name in YES_OR_NO)
    return round(yes / (yes + no), 4) if yes + no else 0.5


# --- Files ----------------------------------------------------------------------------------------


def write_record(values: Row, out: Path) -> None:
    """Write a record on one line; a name that ends in .gz compresses it."""
    data = (json.dumps(values, separators=(",", ":")) + "\n").encode()
    out.write_bytes(gzip.compress(data, mtime=0) if out.suffix == ".gz" else data)


def read_record(path: Path) -> Row:
    """Return a record of either kind."""
    data = path.read_bytes()
    values: Row = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    return values
