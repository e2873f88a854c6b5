"""The workspace: valid for W&B's own schema, and naming only what a run really logs."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from medvqa.config.errors import UserError
from medvqa.tracking.dashboard import (
    Logged,
    main_dashboard,
    read_logged,
    specification,
    workspace,
)
from tests.conftest import environment

pytest.importorskip("wandb_workspaces")


def log_records(path: Path) -> list[dict[str, object]]:
    """Return the records of a .wandb file, read by W&B itself."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in answer.stdout.splitlines()]


@pytest.fixture
def no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def logged_names(log: Path) -> set[str]:
    """Return every name in the history of an offline log, media included."""
    (path,) = log.glob("*.wandb")
    names: set[str] = set()
    for record in log_records(path):
        if record["type"] == "history":
            # A picture or a table is logged as `name._type`, `name.path` and so on.
            names |= {name.partition(".")[0] for name in record["history"]["item"]}
    return names


def named(node: Any) -> set[str]:
    """Return all names of logged values that a specification's panels and columns hold."""
    names: set[str] = set()
    if isinstance(node, Mapping):
        for value in node.values():
            names |= named(value)
    elif isinstance(node, list):
        for value in node:
            names |= named(value)
    elif isinstance(node, str):
        name = node.removeprefix("summary:")
        if name.startswith(("train/", "eval/", "predictions/", "pictures/")):
            names.add(name)
    return names


def sections(content) -> dict[str, int]:
    return {
        section["name"]: len(section["panels"])
        for section in content["spec"]["section"]["panelBankConfig"]["sections"]
    }


@pytest.mark.slow
def test_the_panels_of_a_run_name_only_what_it_logged_and_all_it_evaluated(finished):
    directory, _ = finished
    (log,) = directory.glob("wandb/offline-run-*")
    logged = read_logged([directory])
    assert logged.stages == ("open", "closed")
    assert logged.phases == ("zero_shot", "after_open", "final")
    assert logged.metrics == ("exact_match", "f1", "bertscore_f1")
    names, real = named(specification(workspace("p", "e", logged))), logged_names(log)
    assert names <= real
    evaluations = {name for name in real if name.startswith("eval/test/")}
    shown = {n for n in evaluations if n.rpartition("/")[2] in logged.metrics}
    assert shown <= names
    assert {"train/loss_open", "predictions/test", "pictures/samples"} <= names


@pytest.mark.slow
def test_without_runs_the_panels_name_what_every_shipped_run_logs(finished):
    (log,) = finished[0].glob("wandb/offline-run-*")
    names = named(specification(workspace("p", "", Logged())))
    # The default curriculum is one stage, `mixed`; the run at hand has two others.
    assert names - logged_names(log) == {"train/loss_mixed"}


def test_the_specification_is_valid_for_the_library_and_survives_it():
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.workspaces import internal

    logged = Logged(sets=("test", "shifted"), stages=("open", "closed"))
    content = json.loads(json.dumps(specification(workspace("medvqa", "team", logged))))
    again = ws.Workspace._from_model(internal.View.model_validate(content))
    assert (again.project, again.entity, again.name) == ("medvqa", "team", "medvqa: data and order")
    assert sections(content) == {
        "Grid": 2 * 3,
        "Curves by stage": 5,
        "Metrics by type": 2 * 3 * 3,
        "Predictions": 3,
        "Settings": 1,
    }
    assert [key.name for key in again.runset_settings.groupby] == [
        *("medvqa.model.name", "medvqa.curriculum.name")
    ]
    assert named(specification(again)) == named(content)


def test_the_command_writes_the_file_and_says_what_is_in_it(tmp_path, no_key, capsys):
    main_dashboard(["--json", str(tmp_path / "workspace.json"), "--project", "mine"])
    assert json.loads((tmp_path / "workspace.json").read_text())["project"] == "mine"
    assert "Grid: 3 panels" in capsys.readouterr().out


def test_saving_needs_a_key(no_key):
    with pytest.raises(UserError, match="--save needs a W&B key: run `wandb login`"):
        main_dashboard(["--save"])


def test_a_directory_without_a_finished_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no finished run"):
        main_dashboard([str(tmp_path)])


def test_a_missing_library_is_one_line_with_its_remedy(tmp_path):
    (tmp_path / "wandb_workspaces").mkdir()
    (tmp_path / "wandb_workspaces" / "__init__.py").write_text("raise ImportError('absent')")
    answer = subprocess.run(
        [sys.executable, "-m", "medvqa.cli", "dashboard"],
        capture_output=True,
        text=True,
        check=False,
        env=environment()
        | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
    )
    assert answer.returncode == 2
    assert answer.stderr == (
        'medvqa: medvqa dashboard needs wandb-workspaces: pip install -e ".[dashboard]"\n'
    )
