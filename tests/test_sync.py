"""Uploading offline runs: the dry run knows every file that W&B will look for."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medvqa import sync
from medvqa.config import TrackingConfig, TrackingMode
from medvqa.example import UserError
from medvqa.record import directory_lock
from medvqa.sync import find_runs, main_sync, sync_command
from medvqa.tracking import tracker
from tests.conftest import environment
from tests.test_tracking import questions, write_predictions

OFFLINE = TrackingConfig(mode=TrackingMode.offline)


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two tracked runs with tables of pictures."""
    examples = questions(3)
    for name in ("a-s1", "a-s2"):
        directory = tmp_path / "sweep" / name
        directory.mkdir(parents=True)
        path = write_predictions(directory / "predictions.jsonl", examples)
        with tracker(OFFLINE, directory=directory, group="sweep", settings={"seed": 1}) as run:
            run.log({"train/loss": 2.0}, step=1)
            run.log_predictions("test", path, examples)
    return tmp_path / "sweep"


@pytest.mark.slow
def test_every_file_that_a_real_run_references_is_found(finished):
    (run,) = find_runs([finished[0]])
    assert (run.state, run.exit_code, run.missing) == ("ready", 0, ())
    (table,) = (path for path in run.files if path.name.endswith(".table.json"))
    rows = json.loads(table.read_text())["data"]
    num_images = sum(len(row[0]) for row in rows)
    # Equal pictures are stored once; the artifact holds the table again.
    staged = [path for path in run.files if "wandb-data" in path.parts]
    assert 20 < len(staged) <= num_images + 1
    pictures = {path.name.partition("_")[0] for path in run.files if path.suffix == ".png"}
    assert {"loss", "metrics", "samples"} <= pictures


def test_a_sweeps_runs_are_listed_with_their_group_and_nothing_is_sent(sweep, monkeypatch, capsys):
    monkeypatch.setattr(sync, "upload", lambda _: pytest.fail("sent"))
    main_sync([str(sweep)])
    listed = capsys.readouterr().out
    assert listed.count("ready") == 2
    assert "medvqa/sweep" in listed
    assert "2 of 2 runs" in listed
    command = [*sync_command(find_runs([sweep])), "--dry-run"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert answer.returncode == 0
    assert "Would sync 2 run(s)" in answer.stdout + answer.stderr


def test_a_lost_picture_is_reported_and_its_run_is_not_uploaded(sweep, monkeypatch, capsys):
    sent = []
    monkeypatch.setattr(sync, "upload", lambda runs: sent.extend(runs) or 0)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    lost = next(f for f in find_runs([sweep])[0].files if "wandb-data" in f.parts)
    lost.unlink()
    with pytest.raises(SystemExit) as left:
        main_sync([str(sweep), "--yes"])
    assert "1 runs were left out" in str(left.value)
    assert [run.directory.name for run in sent] == ["a-s2"]
    assert f"1 files are missing, first {lost}" in capsys.readouterr().out
    main_sync([str(sweep), "--yes", "--incomplete"])
    assert len(sent) == 3


def test_a_moved_run_says_where_wandb_looks_and_the_link_helps(sweep, tmp_path, capsys):
    moved = tmp_path / "elsewhere"
    shutil.move(sweep, moved)
    main_sync([str(moved)])
    listed = capsys.readouterr().out
    assert "the run has moved" in listed
    for name in ("a-s1", "a-s2"):
        (command,) = (
            line.partition("find them: ")[2]
            for line in listed.splitlines()
            if line.endswith(f"'{sweep / name}'")
        )
        subprocess.run(command, shell=True, check=True)
    assert [run.state for run in find_runs([moved])] == ["ready", "ready"]


def test_killed_synced_and_running_runs_are_told_apart(sweep):
    first, second = find_runs([sweep])
    (log,) = first.log.glob("*.wandb")
    log.write_bytes(log.read_bytes()[:-200])  # a kill cuts the log off
    run = find_runs([sweep])[0]
    assert (run.exit_code, run.state) == (None, "ready")
    log.with_name(f"{log.name}.synced").touch()
    with directory_lock(second.directory):
        assert [run.state for run in find_runs([sweep])] == ["synced", "running"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["DIR", "--yes"], "no W&B key here: run `wandb login` or set WANDB_API_KEY"),
        (["DIR"], "holds no offline W&B run"),
        (["DIR/nowhere"], "is no directory"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, arguments, message):
    given = [argument.replace("DIR", str(tmp_path)) for argument in arguments]
    answer = subprocess.run(
        [sys.executable, "-m", "medvqa.cli", "sync", *given],
        capture_output=True,
        text=True,
        check=False,
        env=environment() | {"NETRC": str(tmp_path / "netrc")},
    )
    assert answer.returncode == 2
    assert answer.stderr.startswith("medvqa: ")
    assert message in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


def test_a_file_that_is_no_log_is_named(tmp_path):
    log = tmp_path / "run" / "wandb" / "offline-run-1-x"
    log.mkdir(parents=True)
    (log / "run-x.wandb").write_bytes(b"no log at all")
    with pytest.raises(UserError, match=r"W&B cannot read .*run-x\.wandb"):
        find_runs([tmp_path])
