"""Starting over moves what a run wrote, and nothing else."""

import json
import re

import pytest

from medvqa.config.errors import UserError
from medvqa.tracking.files import check_places, directory_lock, set_aside

OF_A_RUN = (
    *("run.json", "metrics.jsonl", "order.jsonl", "preview.txt", "loss.png", ".hydra/config.yaml"),
    *("adapter/adapter_model.safetensors", "checkpoints/step-000004/state.json"),
    *("evaluation/final/test/metrics.json", "wandb/offline-run-1/run.wandb", "calibration.json"),
    *("confidence.png", "evaluation/final/test/served.jsonl"),
    "after_merge/evaluation/merged/test/metrics.json",
)
OF_THE_USER = (
    *("notes.txt", ".git/HEAD", "data/rows.jsonl", "adapter/notes.txt", "evaluation/plan.md"),
    *("train.log", "checkpoints/mine.pt", "wandb/notes.txt", "train.jsonl", "test.jsonl"),
)


def write(directory, names, text="{}"):
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


def files(directory):
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}


def test_only_the_files_of_a_run_are_set_aside_from_among_the_users(tmp_path):
    write(tmp_path, OF_THE_USER)
    write(tmp_path, OF_A_RUN, json.dumps({"config": {}}))
    assert set_aside(tmp_path) == tmp_path / "previous-1"
    assert files(tmp_path / "previous-1") == set(OF_A_RUN)
    assert files(tmp_path) == {*OF_THE_USER, *(f"previous-1/{name}" for name in OF_A_RUN)}


def test_a_directory_without_a_run_is_left_alone(tmp_path):
    write(tmp_path, [*OF_THE_USER, "metrics.jsonl"])
    assert set_aside(tmp_path) is None
    assert files(tmp_path) == {*OF_THE_USER, "metrics.jsonl"}


def test_a_damaged_record_is_set_aside_but_not_that_of_another_program(tmp_path):
    write(tmp_path, ["run.json"], '{"run_id": ')
    assert set_aside(tmp_path) == tmp_path / "previous-1"
    write(tmp_path, ["run.json"], '{"laps": 3}')
    with pytest.raises(UserError, match=r"run\.json is no record of a run; give another"):
        set_aside(tmp_path)
    assert (tmp_path / "run.json").is_file()


def test_runs_are_set_aside_one_after_the_other_and_none_is_lost(tmp_path):
    for number in (1, 2, 3):
        write(tmp_path, ["run.json"], json.dumps({"config": {}, "run_id": number}))
        assert set_aside(tmp_path) == tmp_path / f"previous-{number}"
    kept = [json.loads((tmp_path / f"previous-{n}" / "run.json").read_text()) for n in (1, 2, 3)]
    assert [values["run_id"] for values in kept] == [1, 2, 3]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()].count("adapter") == 0


def test_what_a_kill_left_half_written_goes_but_nothing_in_the_users_folders(tmp_path):
    number = 2**22 + 1  # no process has it
    names = [f".run.json.{number}", f"evaluation/final/test/.metrics.json.{number}"]
    write(tmp_path, [*names, f"data/set/.rows.jsonl.{number}"])
    with directory_lock(tmp_path):
        pass
    assert files(tmp_path) == {".lock", f"data/set/.rows.jsonl.{number}"}


def test_files_of_a_run_and_of_the_user_are_in_nobodys_way(tmp_path):
    write(tmp_path, [*OF_A_RUN, *OF_THE_USER])
    check_places(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["run.json", "order.jsonl", "loss.png", ".hydra/config.yaml", "evaluation/a/b/metrics.json"],
)
def test_a_directory_where_a_run_writes_a_file_is_refused(tmp_path, name):
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UserError, match=rf"{re.escape(name)} is a directory where a run writes"):
        check_places(tmp_path)


@pytest.mark.parametrize("name", ["adapter", "checkpoints", ".hydra", "evaluation"])
def test_a_file_where_a_run_makes_a_directory_is_refused(tmp_path, name):
    write(tmp_path, [name])
    with pytest.raises(UserError, match=rf"/{name} is a file where a run makes a directory"):
        check_places(tmp_path)
