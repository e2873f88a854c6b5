"""Checkpoints on a disk that fills up, and logs that a crash of the machine has cut."""

import errno
import json
import os
import shutil
import subprocess

import pytest
import torch

from medvqa.config.errors import UserError
from medvqa.training.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    load_checkpoint,
    save_checkpoint,
)
from medvqa.training.step_log import recorded_steps

RUN = {"order_sha256": "a", "engine": "plain"}


ORDER = list("abcdefgh")


def write_logs(directory):
    metrics = [json.dumps({"step": step, "loss": 1.0}) for step in range(1, 5)]
    order = [json.dumps({"step": step, "ids": [ORDER[step - 1]]}) for step in range(1, 7)]
    (directory / "metrics.jsonl").write_text("\n".join(metrics))
    (directory / "order.jsonl").write_text("\n".join(order))


def checkpoint(step):
    weights = torch.full((256, 256), float(step))
    return Checkpoint(step, {"lora_A": weights}, {"state": {0: {"exp_avg": weights.clone()}}})


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a full disk is not tested: mounting one needs root")
    mounted = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)]
    answer = subprocess.run(mounted, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        pytest.skip(f"a full disk is not tested: {answer.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@pytest.mark.parametrize("room", [100_000, 450_000], ids=["for no tensor", "for the adapter only"])
def test_a_full_disk_leaves_the_previous_checkpoint_and_room_to_say_so(small_disk, room):
    place = small_disk / "checkpoints"
    save_checkpoint(checkpoint(1), place, RUN)
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free - room))
    with pytest.raises(UserError, match="the disk is full: no room for a checkpoint in"):
        save_checkpoint(checkpoint(2), place, RUN)
    assert [path.name for path in place.iterdir()] == ["step-000001"]
    (small_disk / "run.json").write_text(json.dumps({"state": "failed"}))
    saved = load_checkpoint(place, RUN)
    assert saved is not None
    assert saved.step == 1
    assert torch.equal(saved.adapter["lora_A"], checkpoint(1).adapter["lora_A"])

    (small_disk / "ballast").unlink()
    save_checkpoint(checkpoint(2), place, RUN)
    assert sorted(path.name for path in place.iterdir()) == ["step-000001", "step-000002"]


def test_a_full_disk_is_said_by_the_writer_that_works_behind_the_training(small_disk):
    writer = CheckpointWriter(small_disk / "checkpoints")
    with writer:
        writer.start(checkpoint(1), RUN)
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free - 100_000))
    writer.start(checkpoint(2), RUN)
    with pytest.raises(UserError, match="the disk is full"):
        writer.start(checkpoint(3), RUN)
    with pytest.raises(UserError, match="the disk is full"), writer:
        writer.start(checkpoint(3), RUN)
        raise OSError(errno.ENOSPC, "a line of the log had no room either")
    writer = CheckpointWriter(small_disk / "checkpoints")
    (small_disk / "ballast").unlink()
    with writer:
        writer.start(checkpoint(4), RUN)
    saved = load_checkpoint(small_disk / "checkpoints", RUN)
    assert saved is not None
    assert saved.step == 4


def test_what_ends_in_an_error_leaves_its_checkpoint_whole(tmp_path):
    writer = CheckpointWriter(tmp_path)
    with pytest.raises(KeyboardInterrupt), writer:
        writer.start(checkpoint(1), RUN)
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def damage(path, kind):
    if kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", ["state.json", "adapter.safetensors", "optimizer.pt"])
@pytest.mark.parametrize("kind", ["missing", "empty", "cut"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, name, kind, caplog):
    for step in (1, 2, 3):
        save_checkpoint(checkpoint(step), tmp_path, RUN)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000003"]
    damage(tmp_path / "step-000003" / name, kind)
    saved = load_checkpoint(tmp_path, RUN)
    assert saved is not None
    assert saved.step == 2
    assert "step-000003 is damaged" in caplog.text
    damage(tmp_path / "step-000002" / name, kind)
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read; say fresh=true"):
        load_checkpoint(tmp_path, RUN)


@pytest.mark.parametrize("name", RUN)
def test_a_checkpoint_of_another_order_or_engine_is_refused(tmp_path, name):
    save_checkpoint(checkpoint(1), tmp_path, RUN)
    with pytest.raises(UserError, match=rf"was written with another {name} .* fresh=true"):
        load_checkpoint(tmp_path, {**RUN, name: "other"})


def test_logs_are_whole_up_to_the_last_line_that_both_have(tmp_path):
    assert recorded_steps(tmp_path, ORDER) == 0
    write_logs(tmp_path)
    assert recorded_steps(tmp_path, ORDER) == 4
    text = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(text[:-3])
    assert recorded_steps(tmp_path, ORDER) == 3


@pytest.mark.parametrize("name", ["metrics.jsonl", "order.jsonl"])
@pytest.mark.parametrize(
    "edit",
    [
        lambda lines: lines[1:],
        lambda lines: [lines[0], *lines],
        lambda lines: [lines[0], "{}", *lines[2:]],
        lambda lines: [line.replace('"loss"', '"x"').replace('"b"', '"z"') for line in lines],
    ],
    ids=["a step is missing", "a step stands twice", "an empty row", "other names or ids"],
)
def test_edited_logs_are_refused_before_the_run_goes_on(tmp_path, name, edit):
    write_logs(tmp_path)
    lines = (tmp_path / name).read_text().splitlines()
    (tmp_path / name).write_text("\n".join(edit(lines)))
    with pytest.raises(UserError, match=rf"{name}.*; say fresh=true"):
        recorded_steps(tmp_path, ORDER)


def test_a_checkpoint_under_another_steps_name_is_not_taken_for_that_step(tmp_path, caplog):
    save_checkpoint(checkpoint(1), tmp_path, RUN)
    save_checkpoint(checkpoint(2), tmp_path, RUN)
    (tmp_path / "step-000002").rename(tmp_path / "step-000009")
    saved = load_checkpoint(tmp_path, RUN)
    assert saved is not None
    assert saved.step == 1
    assert "step-000009 is damaged" in caplog.text


def test_a_users_file_beside_the_checkpoints_is_no_checkpoint_and_stays(tmp_path):
    (tmp_path / "step-notes.txt").write_text("mine")
    for step in (1, 2, 3):
        save_checkpoint(checkpoint(step), tmp_path, RUN)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("step-000002", "step-000003", "step-notes.txt")
    ]
    assert load_checkpoint(tmp_path, RUN).step == 3
