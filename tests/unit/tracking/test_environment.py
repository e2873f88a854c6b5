import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medvqa.tracking import environment as machine


def test_environment_names_versions_without_importing_them() -> None:
    code = (
        "import json, sys; from medvqa.tracking.environment import environment; e = environment();"
        "print(json.dumps([e, sorted({'torch', 'transformers', 'wandb'} & set(sys.modules))]))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    found, imported = json.loads(answer.stdout)
    assert imported == []
    assert found["packages"]["torch"].startswith("2.")
    assert found["num_cpus"] == os.cpu_count()
    assert found["memory_bytes"] > 100e6


def fake_nvidia_smi(directory: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = directory / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    monkeypatch.setattr(machine, "_gpus", functools.cache(machine._gpus.__wrapped__))


def test_gpus_are_listed_with_their_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "NVIDIA H100 80GB HBM3, 580.105.08, 81559 MiB"
    fake_nvidia_smi(tmp_path, f"echo '{line}'", monkeypatch)
    assert machine.environment()["gpus"] == [line]


def test_a_driver_that_does_not_answer_counts_as_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvidia_smi(tmp_path, "echo 'NVIDIA-SMI has failed'; exit 9", monkeypatch)
    assert machine.environment()["gpus"] == []


def git(directory: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    command = ["git", "-C", str(directory), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_git_state_knows_commit_and_dirt(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("")
    (tmp_path / ".gitignore").write_text(".venv\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "a")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert machine.git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "never_added.py").write_text("")
    assert machine.git_state(tmp_path) == {"commit": commit, "dirty": True}


def test_an_environment_inside_a_checkout_is_not_that_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "a")
    installed = tmp_path / ".venv" / "medvqa"
    installed.mkdir(parents=True)
    assert machine.git_state(installed) == {"commit": None, "dirty": None}


def test_git_state_is_null_outside_a_checkout(tmp_path: Path) -> None:
    assert machine.git_state(tmp_path) == {"commit": None, "dirty": None}
