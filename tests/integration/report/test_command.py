"""`medvqa report` on real runs."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from medvqa.cli import guarded
from medvqa.report.report import main_report
from medvqa.tracking.record import read_lines
from tests.conftest import ROOT


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Two curricula x two seeds through the command line, and the report of it."""
    place = tmp_path_factory.mktemp("real")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "HYDRA_"))}
    overrides = ["experiment=smoke", "data.evaluation.test.limit=16", "evaluation.blind=true",
                 "evaluation.bertscore.enabled=false", "training.warmup_steps=1",
                 "tracking.pictures=false"]  # fmt: skip
    answer = subprocess.run(
        [
            *(sys.executable, str(ROOT / "train.py"), "-m", *overrides),
            *("curriculum=open_first,mixed", "seed=1,2", "hydra.launcher.warm=true"),
            "hydra.sweep.dir=grid",
        ],
        cwd=place,
        env={**environment, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    report = subprocess.run(
        [sys.executable, "-m", "medvqa.cli", "report", "grid"],
        cwd=place,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert report.returncode == 0, report.stderr
    return place / "grid", report.stdout


@pytest.mark.slow
def test_the_command_leaves_every_file(real):
    grid, output = real
    names = {str(p.relative_to(grid / "report")) for p in (grid / "report").rglob("*.*")}
    plots = ("grid_test", "differences_test", "forgetting_test", "loss", "cost")
    assert names >= {
        *("results.csv", "comparisons.csv", "comparisons.json", "runs.csv", "tables.md"),
        "verdicts.csv",
        *("tables.tex", "report.html"),
        *(f"plots/{name}.{suffix}" for name in plots for suffix in ("png", "svg")),
    }
    assert "open_first \N{MINUS SIGN} mixed" in output
    assert "4 runs: 4 finished; 2 arms" in output


@pytest.mark.slow
def test_a_result_is_the_mean_of_its_runs_metrics_and_names_them(real):
    grid, _ = real
    checked = 0
    for row in rows_of(grid / "report" / "results.csv"):
        means = []
        for run in row["runs"].split(";"):
            path = grid.parent / run / "evaluation" / row["phase"] / row["set"] / "metrics.json"
            summary = json.loads(path.read_text())["summary"]
            means.append(summary[row["group"]][row["metric"]]["mean"])
        assert float(row["mean"]) == pytest.approx(np.mean(means))
        assert [float(m) for m in row["run_means"].split(";")] == pytest.approx(means)
        checked += 1
    assert checked >= 60


@pytest.mark.slow
def test_blind_the_question_alone_decides_the_answer(real):
    grid, _ = real
    repeats = 0
    for path in grid.glob("*/evaluation/blind/test/predictions.jsonl"):
        answers = {}
        for row in read_lines(path):
            repeats += row["question"] in answers
            assert answers.setdefault(row["question"], row["prediction"]) == row["prediction"]
        protocol = json.loads(path.with_name("metrics.json").read_text())
        assert protocol["images"] == "removed"
        final = json.loads((path.parents[2] / "final" / "test" / "metrics.json").read_text())
        assert final["images"] == "shown"
    assert repeats > 10


def test_a_mistake_leaves_with_code_2_and_writes_nothing(written, tmp_path, capsys):
    written(tmp_path / "a", "curriculum=mixed", "training.max_steps=10")
    written(tmp_path / "b", "curriculum=open_first", "training.max_steps=20")
    with pytest.raises(SystemExit) as left:
        guarded(lambda: main_report([str(tmp_path)]))
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("medvqa: tiny / mixed max_steps=10 and tiny / open_first max_steps=20")
    assert not (tmp_path / "report").exists()
