"""A grid as a command: warm equals isolated, kills lose nothing, mistakes come first."""

import csv
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading

import psutil
import pytest

from medvqa.tracking.record import read_lines
from tests import conftest
from tests.conftest import ROOT, environment, forked, wait_for
from tests.forked import CLI, Forked
from tests.integration.test_wandb import of_type, read_log, rows

SMOKE = (
    *("experiment=smoke", "data.evaluation.test.limit=16", "evaluation.bertscore.enabled=false"),
    "tracking.pictures=false",
)
GRID = (*SMOKE, "curriculum=open_first,mixed", "seed=1")

pytestmark = pytest.mark.slow


def start(directory, *overrides, **variables):
    return conftest.start(directory, "-m", *overrides, env=environment(**variables))


def call(directory, *overrides):
    answer = forked(directory, "-m", *overrides, imports=CLI).wait()
    return answer.returncode, answer.stdout + answer.stderr


def medvqa(*arguments):
    """Run a command and return what it prints."""
    program = "import sys; sys.argv[0] = 'medvqa'; import medvqa.cli; medvqa.cli.main()"
    words = map(str, arguments)
    answer = Forked(program, *words, imports=CLI, cwd=ROOT, env=environment()).wait()
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def only(paths):
    (path,) = paths
    return path


def sweep_of(directory):
    return only((directory / "multirun").iterdir())


def runs(sweep):
    return sorted(path.parent for path in sweep.glob("*/run.json"))


@pytest.fixture(scope="module")
def cold(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cold")
    code, output = call(directory, *GRID)
    assert code == 0, output
    return sweep_of(directory), output


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    directory = tmp_path_factory.mktemp("warm")
    options = ("hydra.launcher.warm=true", "tracking.mode=offline")
    code, output = call(directory, *GRID, *options)
    assert code == 0, output
    return sweep_of(directory)


def test_every_cell_is_a_finished_run_and_the_summary_has_them_all(cold):
    sweep, _ = cold
    with (sweep / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["finished"] * 2
    summary = json.loads((sweep / "summary.json").read_text())["jobs"]
    for row in summary:
        record = json.loads((sweep / row["directory"] / "run.json").read_text())
        assert (
            row["exact_match"] == record["results"]["test"]["eval/test/final/overall/exact_match"]
        )
        assert record["overrides"] == row["overrides"].split()
        assert (sweep / row["directory"] / ".hydra" / "config.yaml").is_file()
    assert "2 finished" in cold[1]


def test_warm_cells_equal_isolated_ones_bit_by_bit(cold, warm):
    assert sum("is loaded already" in path.read_text() for path in warm.glob("*/console.log")) == 1
    isolated = runs(cold[0])
    assert [run.name for run in isolated] == [run.name for run in runs(warm)]
    for run in isolated:
        answers = [f"evaluation/{phase}/test/predictions.jsonl" for phase in ("zero_shot", "final")]
        for name in ("metrics.jsonl", "order.jsonl", *answers):
            ours, theirs = read_lines(run / name), read_lines(warm / run.name / name)
            for row in (*ours, *theirs):
                row.pop("seconds", None)
            assert ours == theirs, name
        adapter = "adapter/adapter_model.safetensors"
        assert (run / adapter).read_bytes() == (warm / run.name / adapter).read_bytes()


def test_warm_cells_are_runs_of_their_own_in_wandb(warm):
    told = {}
    for run in runs(warm):
        records = read_log(run)
        about = of_type(records, "run")[0]
        assert about["run_group"] == warm.name
        assert [exit.get("exit_code", 0) for exit in of_type(records, "exit")] == [0]
        losses = [row["train/loss"] for row in rows(records) if "train/loss" in row]
        assert losses == [row["loss"] for row in read_lines(run / "metrics.jsonl")]
        told[about["run_id"]] = about["display_name"]
    assert sorted(told.values()) == ["curriculum=mixed", "curriculum=open_first"]


def test_the_same_command_and_resume_do_nothing_twice(cold):
    sweep, _ = cold
    before = [(run / "run.json").read_bytes() for run in runs(sweep)]
    code, output = call(sweep.parents[1], *GRID)
    assert (code, "2 of 2 jobs are finished already" in output) == (0, True)
    medvqa("resume", sweep)
    assert [(run / "run.json").read_bytes() for run in runs(sweep)] == before
    assert "2 finished" in medvqa("status", sweep)


def test_a_changed_yaml_runs_anew_and_changed_back_it_is_finished(cold, tmp_path):
    """The jobs that begin here are ended at once: what counts is which ones begin."""
    sweep = tmp_path / "grid"
    shutil.copytree(cold[0], sweep)
    before = {run: (run / "run.json").read_bytes() for run in runs(sweep)}
    smoke = (ROOT / "conf" / "experiment" / "smoke.yaml").read_text()
    mine = tmp_path / "conf" / "experiment" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text(smoke)
    grid = [override.replace("experiment=smoke", "experiment=mine") for override in GRID]
    known = ("--config-dir", str(tmp_path / "conf"), *grid, f"hydra.sweep.dir='{sweep}'")
    code, output = call(tmp_path, *known)
    assert (code, "2 of 2 jobs are finished already" in output) == (0, True), output

    mine.write_text(smoke.replace("max_steps: 6", "max_steps: 7"))
    code, output = call(tmp_path, *known, "hydra.launcher.timeout_minutes=0.0001")
    assert (code, "finished already" in output) == (1, False), output
    assert "2 timed_out" in output
    mine.write_text(smoke)
    code, output = call(tmp_path, *known)
    assert (code, "2 of 2 jobs are finished already" in output) == (0, True), output
    assert {run: (run / "run.json").read_bytes() for run in before} == before


def test_fresh_starts_over_in_the_same_place_and_keeps_the_old_runs(cold, tmp_path):
    grid = tmp_path / "multirun" / cold[0].name
    shutil.copytree(cold[0], grid)
    code, output = call(tmp_path, *GRID, "fresh=true", "hydra.launcher.timeout_minutes=0.0001")
    assert (code, "finished already" in output) == (1, False), output
    assert sweep_of(tmp_path) == grid
    for run in runs(cold[0]):
        kept = grid / run.name / "previous-1" / "run.json"
        assert kept.read_bytes() == (run / "run.json").read_bytes()


def test_fresh_starts_over_only_the_cell_that_cannot_go_on(cold, tmp_path):
    grid = tmp_path / "multirun" / cold[0].name
    shutil.copytree(cold[0], grid)
    (grid / "multirun.yaml").write_text("of the first command\n")
    finished, half_done = runs(grid)
    before = (finished / "run.json").read_bytes()
    record = json.loads((half_done / "run.json").read_text())
    record |= {"state": "interrupted", "code": {"sha256": "other"}}
    (half_done / "run.json").write_text(json.dumps(record))

    code, output = call(tmp_path, *GRID)
    assert (code, "was begun by other code" in output) == (2, True), output
    assert (grid / "multirun.yaml").read_text() == "of the first command\n"
    code, output = call(tmp_path, *GRID, "fresh=true", "hydra.launcher.timeout_minutes=0.0001")
    assert (code, "1 of 2 jobs are finished already" in output) == (1, True), output
    assert (finished / "run.json").read_bytes() == before
    assert not (finished / "previous-1").exists()
    assert (half_done / "previous-1" / "run.json").is_file()


# A wall clock that goes back an hour each time someone looks.
BACKWARDS = """
import itertools, time
steps = itertools.count(1)
time.time = lambda: 1e9 - 3600 * next(steps)
"""


def damage(run):
    """Cut files off as a crash of the machine might."""
    for name in ("status.json", "evaluation/majority/test/predictions.jsonl"):
        text = (run / name).read_text()
        (run / name).write_text(text[: len(text) - 9])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 25, "lo')


def test_a_killed_job_and_a_killed_launcher_go_on_from_their_checkpoints(tmp_path):
    long = (*SMOKE, "training.max_steps=16", "evaluation.zero_shot=false", "seed=1,2")
    launcher = start(tmp_path, *long)
    wait_for(lambda: [*tmp_path.glob("multirun/*")])
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
    damage(first)
    (tmp_path / "sitecustomize.py").write_text(BACKWARDS)
    launcher = start(tmp_path, *long, "hydra.launcher.warm=true", PYTHONPATH=str(tmp_path))
    code, output = conftest.ended(launcher)
    assert code == 0, output
    log = (first / "console.log").read_text()
    assert "majority/test is evaluated again: predictions.jsonl holds 15 of 16 answers" in log
    assert len(read_lines(first / "evaluation" / "majority" / "test" / "predictions.jsonl")) == 16
    summary = json.loads((sweep / "summary.json").read_text())["jobs"]
    assert all(row["seconds"] > 0 for row in summary)
    for run in runs(sweep):
        record = json.loads((run / "run.json").read_text())
        assert record["state"] == "finished"
        assert record["num_starts"] == 2
        assert record["training"]["resumed_from_step"] > 0
        assert [row["step"] for row in read_lines(run / "metrics.jsonl")] == list(range(1, 17))


def test_on_a_terminal_the_grid_is_a_live_table_a_second_launcher_refuses_and_ctrl_c_ends_it(
    tmp_path,
):
    long = (*SMOKE, "training.max_steps=2000", "evaluation.zero_shot=false", "seed=1,2")
    terminal, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    launcher = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "-m", *long],
        cwd=tmp_path,
        env=environment(TERM="xterm"),
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
        # Ctrl-C reaches whoever has this terminal.
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(inside)
    shown = []
    reader = threading.Thread(target=lambda: shown.extend(read_until_closed(terminal)))
    reader.start()
    wait_for(lambda: list(tmp_path.glob("multirun/*/*/metrics.jsonl")))
    sweep = sweep_of(tmp_path)

    def screen():
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", "".join(shown))  # without colours

    wait_for(lambda: re.search(r"seed=1 +│ running +│ +│ \d+/2000 ", screen()))
    assert "1 running, 1 waiting" in medvqa("status", sweep)
    code, output = call(tmp_path, *long)
    assert (code, "is being written by process" in output) == (2, True), output
    os.write(terminal, b"\x03")
    assert launcher.wait(timeout=60) == 130
    reader.join()
    assert "1 interrupted, 1 waiting" in screen()
    assert "medvqa: interrupted; the same command goes on" in screen()
    run = only(runs(sweep))
    assert json.loads((run / "run.json").read_text())["state"] == "interrupted"
    assert "1 interrupted, 1 waiting" in medvqa("status", sweep)


def read_until_closed(terminal):
    """Yield what a terminal shows; Linux says so with an error when nobody writes any more."""
    while True:
        try:
            yield os.read(terminal, 65536).decode(errors="replace")
        except OSError:
            return


def test_a_launcher_that_is_told_to_leave_ends_in_order(tmp_path):
    long = ("training.max_steps=2000", "evaluation.zero_shot=false")
    launcher = start(tmp_path, *SMOKE, *long, "seed=1,2")
    wait_for(lambda: [*tmp_path.glob("multirun/*/*/metrics.jsonl")])
    launcher.send_signal(signal.SIGTERM)
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 130, output
    assert "1 interrupted, 1 waiting" in output
    assert (sweep_of(tmp_path) / "summary.csv").is_file()
    (run,) = runs(sweep_of(tmp_path))
    assert json.loads((run / "run.json").read_text())["state"] == "interrupted"


def test_mistakes_of_any_cell_come_before_the_first_job(tmp_path):
    code, output = call(tmp_path, *SMOKE, "data.limit=8,5000")
    assert code == 2, output
    assert re.search("job 1 .*limit=5000, but there are only 4000 rows", output)
    assert not list(tmp_path.glob("multirun/*/*/run.json"))
    # The first worker starts before the checks end.
    started_here = (p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(tmp_path))
    assert not list(started_here)


def test_a_failed_cell_gives_exit_code_1_and_the_others_finish(tmp_path):
    # A pixel budget too small for one patch can only be seen once the processor is loaded.
    code, output = call(
        *(tmp_path, *SMOKE, "model.max_pixels=64,16384", "model.min_pixels=16"),
        *("tracking.mode=offline", "training.max_steps=2", "evaluation.zero_shot=false"),
    )
    assert code == 1, output
    assert "1 of 2 jobs did not finish (0); the same command runs what is left" in output
    assert "is not obeyed" in output
    assert "1 failed, 1 finished" in output
    exit_codes = {}
    for run in runs(sweep_of(tmp_path)):
        records = read_log(run)
        name = of_type(records, "run")[0]["display_name"]
        exit_codes[name] = [exit.get("exit_code", 0) for exit in of_type(records, "exit")]
    assert exit_codes == {"model.max_pixels=64": [1], "model.max_pixels=16384": [0]}


def test_cells_that_differ_in_words_only_are_one_run(tmp_path):
    cells = ("tracking.project=one,two", "hydra.launcher.timeout_minutes=0.0001")
    code, output = call(tmp_path, *SMOKE, *cells)
    assert code == 1, output
    assert "1 jobs on 1 CPU slot(s)" in output
    assert "2 of 2 jobs did not finish (0, 1)" in output
    assert "2 timed_out" in output
