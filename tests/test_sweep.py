"""A grid as a command: warm equals isolated, kills lose nothing, mistakes come first."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from medvqa.record import read_lines
from tests.conftest import ROOT

SMOKE = ("experiment=smoke", "data.evaluation.test.limit=16", "evaluation.bertscore.enabled=false")
GRID = (*SMOKE, "curriculum=open_first,mixed", "seed=1,2")

pytestmark = pytest.mark.slow


def environment():
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "HYDRA_"))}
    return {**kept, "CUDA_VISIBLE_DEVICES": ""}


def start(directory, *overrides):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "-m", *overrides],
        cwd=directory,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def call(directory, *overrides):
    process = start(directory, *overrides)
    output, _ = process.communicate()
    return process.returncode, output


def only(paths):
    (path,) = paths
    return path


def sweep_of(directory):
    return only((directory / "multirun").iterdir())


def runs(sweep):
    return sorted(path.parent for path in sweep.glob("*/run.json"))


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cold(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cold")
    code, output = call(directory, *GRID)
    assert code == 0, output
    return sweep_of(directory), output


def test_every_cell_is_a_finished_run_and_the_summary_has_them_all(cold):
    sweep, _ = cold
    with (sweep / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["finished"] * 4
    summary = json.loads((sweep / "summary.json").read_text())["jobs"]
    for row in summary:
        record = json.loads((sweep / row["directory"] / "run.json").read_text())
        assert (
            row["exact_match"] == record["results"]["test"]["eval/test/final/overall/exact_match"]
        )
        assert record["overrides"] == row["overrides"].split()
        assert (sweep / row["directory"] / ".hydra" / "config.yaml").is_file()
    assert "4 finished" in cold[1]


def test_warm_cells_equal_isolated_ones_bit_by_bit(cold, tmp_path):
    code, output = call(tmp_path, *GRID, "hydra.launcher.warm=true")
    assert code == 0, output
    warm = sweep_of(tmp_path)
    assert sum("is loaded already" in path.read_text() for path in warm.glob("*/console.log")) == 3
    isolated = runs(cold[0])
    assert [run.name for run in isolated] == [run.name for run in runs(warm)]
    for run in isolated:
        for name in ("metrics.jsonl", "order.jsonl", "evaluation/final/test/predictions.jsonl"):
            ours, theirs = read_lines(run / name), read_lines(warm / run.name / name)
            for row in (*ours, *theirs):
                row.pop("seconds", None)
            assert ours == theirs, name
        adapter = "adapter/adapter_model.safetensors"
        assert (run / adapter).read_bytes() == (warm / run.name / adapter).read_bytes()


def test_the_same_command_and_resume_do_nothing_twice(cold):
    sweep, _ = cold
    before = [(run / "run.json").read_bytes() for run in runs(sweep)]
    code, output = call(sweep.parents[1], *GRID)
    assert (code, "4 of 4 jobs are finished already" in output) == (0, True)
    answer = subprocess.run(
        [sys.executable, "-m", "medvqa.cli", "resume", str(sweep)],
        capture_output=True,
        text=True,
        check=False,
        env=environment() | {"PYTHONPATH": str(ROOT)},
    )
    assert answer.returncode == 0, answer.stderr
    assert [(run / "run.json").read_bytes() for run in runs(sweep)] == before


def test_a_killed_job_and_a_killed_launcher_go_on_from_their_checkpoints(tmp_path):
    long = (*SMOKE, "training.max_steps=60", "evaluation.zero_shot=false", "seed=1,2")
    launcher = start(tmp_path, *long)
    wait_for(lambda: (tmp_path / "multirun").is_dir())
    sweep = sweep_of(tmp_path)

    def checkpoint(number):
        found = sorted(sweep.glob(f"*-s{number}-*/checkpoints/step-*"))
        return bool(found)

    wait_for(lambda: checkpoint(1))
    first = only(sweep.glob("*-s1-*"))
    os.kill(json.loads((first / "status.json").read_text())["pid"], signal.SIGKILL)
    wait_for(lambda: checkpoint(2))  # the other one goes on
    assert json.loads((first / "status.json").read_text())["state"] == "killed"
    launcher.kill()
    launcher.communicate()
    code, output = call(tmp_path, *long)
    assert code == 0, output
    for run in runs(sweep):
        record = json.loads((run / "run.json").read_text())
        assert record["state"] == "finished"
        assert record["num_starts"] == 2
        assert record["training"]["resumed_from_step"] > 0
        assert [row["step"] for row in read_lines(run / "metrics.jsonl")] == list(range(1, 61))


def test_a_second_launcher_on_the_same_grid_refuses(tmp_path):
    long = (*SMOKE, "training.max_steps=2000", "evaluation.zero_shot=false", "seed=1,2")
    launcher = start(tmp_path, *long)
    wait_for(lambda: list(tmp_path.glob("multirun/*/*/metrics.jsonl")))
    code, output = call(tmp_path, *long)
    assert (code, "is being written by process" in output) == (2, True), output
    launcher.send_signal(signal.SIGINT)
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 130, output
    assert "1 interrupted, 1 waiting" in output
    run = only(runs(sweep_of(tmp_path)))
    assert json.loads((run / "run.json").read_text())["state"] == "interrupted"


def test_mistakes_of_any_cell_come_before_the_first_job(tmp_path):
    for overrides, message in (
        (("seed=1,-2",), "seed must be 0 or more"),
        (("data.limit=8,5000",), "job 1 .*limit=5000, but there are only 4000 rows"),
        (("curriculum=mixed,open_frst",), "did you mean curriculum=open_first"),
    ):
        code, output = call(tmp_path, *SMOKE, *overrides)
        assert code == 2, output
        assert re.search(message, output)
    assert not list(tmp_path.glob("multirun/*/*/run.json"))


def test_a_failed_cell_gives_exit_code_1_and_the_others_finish(tmp_path):
    # A pixel budget too small for one patch can only be seen once the processor is loaded.
    code, output = call(tmp_path, *SMOKE, "model.max_pixels=64,16384", "model.min_pixels=16")
    assert code == 1, output
    assert "1 of 2 jobs did not finish (0); the same command runs what is left" in output
    assert "is not obeyed" in output
    assert "1 failed, 1 finished" in output
