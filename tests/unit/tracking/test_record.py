import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medvqa.config.errors import UserError
from medvqa.tracking import record
from medvqa.tracking.files import directory_lock
from medvqa.tracking.record import (
    JsonLines,
    RunRecord,
    read_json,
    read_lines,
    read_run,
    write_json,
)
from medvqa.tracking.run_file import RunFile

SETTINGS = {"run_id": "abc", "config": {"seed": 1}, "overrides": ["seed=1"]}
HOLD = """
import sys, time
from pathlib import Path
from medvqa.tracking.files import directory_lock
with directory_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_failing_write_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    record.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        record.write_json(path, {"a": 2, "b": object()})
    assert read_json(path) == {"a": 1}


def test_not_a_number_survives_as_valid_json(tmp_path: Path) -> None:
    values = {"deep": [{"loss": math.nan, "low": -math.inf}], "fine": 0.5}
    record.write_json(tmp_path / "a.json", values)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    read = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert read == {"deep": [{"loss": "NaN", "low": "-Infinity"}], "fine": 0.5}
    assert float(read["deep"][0]["low"]) == -math.inf


def test_a_missing_file_is_empty_and_a_damaged_one_an_error(tmp_path: Path) -> None:
    assert read_json(tmp_path / "run.json") == {}
    (tmp_path / "run.json").write_text('{"a": ')
    with pytest.raises(UserError, match=r"run\.json is damaged.*fresh=true"):
        read_json(tmp_path / "run.json")


def test_a_second_process_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=f"is being written by process {holder.pid};"),
            directory_lock(tmp_path),
        ):
            pass
        holder.kill()
        holder.wait()
        with directory_lock(tmp_path):  # the kill has let go of it
            assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_each_line_is_readable_before_the_log_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with JsonLines(path, keep_up_to_step=0) as log:
        log.write({"step": 1, "loss": math.nan})
        assert path.read_text() == '{"step": 1, "loss": "NaN"}\n'


def test_a_resumed_log_drops_the_steps_that_are_done_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3)]
    path.write_text("\n".join(lines) + '\n{"step": 4, "lo')
    with JsonLines(path, keep_up_to_step=2) as log:
        log.write({"step": 3, "loss": 0.5})
    assert [(row["step"], row["loss"]) for row in read_lines(path)] == [
        (1, 1.0),
        (2, 1.0),
        (3, 0.5),
    ]


def test_damage_before_the_last_line_is_an_error_naming_the_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 is damaged"):
        read_lines(path)


def test_a_line_separator_inside_an_answer_ends_no_line(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    rows = [{"step": 1, "prediction": "left\u2028lung\x85"}, {"step": 2, "prediction": "b"}]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert read_lines(path) == rows


def test_an_empty_log_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    assert read_lines(tmp_path / "metrics.jsonl") == []
    assert read_lines(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    "end", [b'{"step": 2, "answer": "\xe8\x82', b'{"st', b"\xff", b"[2]", b"3"]
)
def test_a_cut_or_damaged_last_line_is_left_out_and_an_earlier_one_is_named(tmp_path, end):
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b'{"step": 1}\n' + end)
    assert read_lines(log) == [{"step": 1}]
    log.write_bytes(end + b'\n{"step": 1}\n')
    with pytest.raises(UserError, match=r"line 1 is damaged"):
        read_lines(log)


def test_phases_add_up_over_starts(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    for start in (1, 2):
        keeper = RunRecord(path, SETTINGS)
        with keeper.phase("train"):
            time.sleep(0.05)
        assert read_json(path)["num_starts"] == start
    assert 0.1 <= read_json(path)["seconds"]["train"] < 1


def test_a_failed_run_says_why_and_a_finished_one_that_it_is(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with pytest.raises(RuntimeError, match="boom"), RunRecord(path, SETTINGS).recording():
        assert read_json(path)["state"] == "running"
        raise RuntimeError("boom")
    failed = read_json(path)
    assert (failed["state"], failed["error"]) == ("failed", "RuntimeError: boom")
    again = RunRecord(path, SETTINGS)
    with again.recording():
        again.finish(num_steps=3)
    finished = read_json(path)
    assert (finished["state"], finished["num_steps"]) == ("finished", 3)
    assert "error" not in finished
    assert finished["peak_memory_bytes"] > 10e6


def test_the_record_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "hub.token=s3cret"])
    monkeypatch.setenv("HF_TOKEN", "s3cret")
    settings = {**SETTINGS, "overrides": ["seed=1", "hub.token=s3cret"]}
    RunRecord(tmp_path / "run.json", settings).update()
    assert "s3cret" not in (tmp_path / "run.json").read_text()
    assert read_json(tmp_path / "run.json")["overrides"] == ["seed=1", "hub.token=***"]


def test_an_error_that_repeats_a_secret_is_kept_without_it(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    message = "401 for https://me:s3cret@x.org/d?token=s3cret"
    with pytest.raises(RuntimeError), RunRecord(path, SETTINGS).recording():
        raise RuntimeError(message)
    assert read_json(path)["error"] == "RuntimeError: 401 for https://***@x.org/d?token=***"


@pytest.mark.parametrize("entry", [name for name in RunFile.__annotations__ if name != "overrides"])
def test_an_entry_of_a_wrong_kind_is_damage_and_named(tmp_path: Path, entry: str) -> None:
    write_json(tmp_path / "run.json", {"config": {}, entry: []})
    with pytest.raises(UserError, match=rf"run\.json is damaged: {entry} is \[\], .*; say fresh"):
        read_run(tmp_path)
