"""One record of the finished cells of the study on the speaking base."""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.scores import MACHINE, finished_runs
from medvqa.config.evaluation import Normalizer
from medvqa.evaluation.normalize import normalize
from medvqa.tracking.record import read_lines

Row = dict[str, Any]


def share_of_yes(row: Row) -> float | None:
    """Return P(yes) / (P(yes) + P(no)) of a question that is answered with one of both."""
    if label(row) is None or not row["choice_probs"]:
        return None
    yes, no = (float(row["choice_probs"][name]) for name in ("yes", "no"))
    return round(yes / (yes + no), 4) if yes + no else 0.5


def label(row: Row) -> str | None:
    """Return yes or no where that is the reference of a closed question."""
    text = normalize(row["references"][0], Normalizer["squad"])
    return text if row["answer_type"] == "closed" and text in ("yes", "no") else None


def read_cell(directory: Path, run: Row, sets: dict[str, Any]) -> Row:
    """Return a finished cell; what its questions are goes into `sets` once per fold or pool."""
    config = run["config"]
    fold = config["data"]["split"].removeprefix("train_")
    if config["data"]["name"] == "phantom":
        fold = f"pool{config['data']['seed']}"
    phases = {}
    for path in sorted(directory.glob("evaluation/*/test/predictions.jsonl")):
        rows = sorted(read_lines(path), key=lambda row: str(row["id"]))
        about = {
            "ids": [row["id"] for row in rows],
            "kinds": [row["answer_type"] for row in rows],
            "clusters": [f"{fold} {row['cluster']}" for row in rows],  # pools repeat names
            "labels": [label(row) for row in rows],
        }
        if sets.setdefault(fold, about) != about:
            raise SystemExit(f"{directory}: {fold} has other questions than the first cell's")
        phases[path.parent.parent.name] = {
            "exact_match": "".join("1" if row["exact_match"] else "0" for row in rows),
            "f1": [round(row["f1"], 3) for row in rows],
            "yes": [share_of_yes(row) for row in rows if label(row)],
        }
    return {
        "arm": config["curriculum"]["name"],
        "fold": fold,
        "seed": config["seed"],
        "max_steps": config["training"]["max_steps"],
        "learning_rate": config["training"]["learning_rate"],
        "final_loss": run["training"]["final_loss"],
        "order_sha256": run["plan"]["order_sha256"],
        "engine": run["compute_path"]["engine"],
        "seconds": run["seconds"],
        "phases": phases,
    }


def record(directories: list[Path], out: Path) -> None:
    """Write the record of all finished cells below the directories."""
    sets: dict[str, Any] = {}
    finished, unfinished, environment = finished_runs(directories)
    cells = [read_cell(directory, run, sets) for directory, run in finished.items()]
    known = {name: environment.get(name) for name in MACHINE}
    values = {"environment": known, "unfinished": len(unfinished), "sets": sets, "cells": cells}
    data = (json.dumps(values, separators=(",", ":")) + "\n").encode()
    out.write_bytes(gzip.compress(data, mtime=0) if out.suffix == ".gz" else data)
    sys.stdout.write(f"{len(cells)} cells, {len(unfinished)} unfinished\n")
