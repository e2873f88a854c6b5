"""What is wrong with the runs is said, and such runs are not compared."""

import json
import shutil

import pytest

from medvqa.config.errors import UserError
from medvqa.report.runs import read_runs
from medvqa.report.study import read_study
from medvqa.report.tables import tables
from medvqa.tracking.record import read_lines, write_json
from tests.synthetic_grid import edit_run


def predictions_of(directory):
    path = directory / "evaluation" / "final" / "test" / "predictions.jsonl"
    return path, read_lines(path)


def write_rows_of(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_grid(place, jobs):
    jobs = [{"name": job["directory"], **job} for job in jobs]
    write_json(
        place / "sweep.json", {"jobs": jobs, "arguments": ["-m"], "working_directory": str(place)}
    )


def test_predictions_that_do_not_give_the_stored_metrics_are_named(written, tmp_path):
    run = written(tmp_path / "run")
    path, rows = predictions_of(run)
    write_rows_of(path, [{**row, "exact_match": not row["exact_match"]} for row in rows])
    notes = read_study([tmp_path]).notes
    assert any("the predictions give exact_match" in note for note in notes)
    write_rows_of(path, [{**rows[0], "prediction": rows[0]["references"][0]}, *rows[1:]])
    expected = not rows[0]["exact_match"]
    notes = read_study([tmp_path]).notes
    assert any("not those of the answers" in note for note in notes) == expected


def test_runs_of_a_clean_grid_raise_no_note_but_the_missing_gate(study):
    assert [note for note in study.notes if "contamination not checked" not in note] == []


def test_a_missing_contamination_record_is_named(written, tmp_path):
    run = written(tmp_path / "run")
    (run / "contamination.json").unlink(missing_ok=True)
    notes = read_study([tmp_path]).notes
    assert any("contamination not checked in 1 of 1 runs" in note for note in notes)


def test_a_seed_that_answers_otherwise_the_second_time_differs(written, tmp_path):
    written(tmp_path / "a", "seed=1")
    written(tmp_path / "b", "seed=1", ability=3.0)
    (note,) = [n for n in read_study([tmp_path]).notes if "not counted again" in n]
    assert "differs from" in note


def test_a_copy_inside_a_grid_is_named(written, tmp_path):
    run = written(tmp_path / "one", "seed=1")
    run_id = json.loads((run / "run.json").read_text())["run_id"]
    entry = {"directory": "one", "run_id": run_id, "overrides": [], "number": 0}
    write_grid(tmp_path, [entry])
    shutil.copytree(run, tmp_path / "two")
    notes = read_study([tmp_path]).notes
    assert any("two is no cell of its grid" in note for note in notes)


def test_a_copy_under_another_seed_is_named(written, tmp_path):
    run = written(tmp_path / "one", "seed=1")
    shutil.copytree(run, tmp_path / "two")
    config = json.loads((run / "run.json").read_text())["config"]
    edit_run(tmp_path / "two", config={**config, "seed": 2})
    notes = read_study([tmp_path]).notes
    assert any("(seed 2) gives on test exactly the answers of" in note for note in notes)


def test_a_constant_answer_is_named(written, tmp_path):
    written(tmp_path / "run", answer=lambda example, phase: "no")
    notes = read_study([tmp_path]).notes
    assert any("1 of 1 runs answer 'no' to every question of test" in note for note in notes)


def test_runs_of_other_code_are_named(written, tmp_path):
    for seed in (1, 2):
        edit_run(written(tmp_path / str(seed), f"seed={seed}"), code={"sha256": f"{seed}" * 64})
    notes = read_study([tmp_path]).notes
    assert any("runs of different code: 1 by 11111111, 1 by 22222222" in note for note in notes)


def test_places_without_runs_are_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="nowhere is no directory"):
        read_runs([tmp_path / "nowhere"])
    with pytest.raises(UserError, match=r"holds no run: no run\.json and no sweep\.json"):
        read_runs([tmp_path])


def test_what_is_unfinished_or_damaged_is_shown_with_the_reason_and_not_compared(written, tmp_path):
    for name in ("good", "failed", "killed", "cut", "torn"):
        written(tmp_path / name, f"seed={len(name)}")
    values = json.loads((tmp_path / "failed" / "run.json").read_text())
    error = "RuntimeError: CUDA out of memory"
    write_json(tmp_path / "failed" / "run.json", {**values, "state": "failed", "error": error})
    write_json(tmp_path / "killed" / "run.json", {**values, "state": "running"})
    status = {"state": "killed", "error": "killed by signal 9"}
    write_json(tmp_path / "killed" / "status.json", status)
    predictions = tmp_path / "cut" / "evaluation" / "final" / "test" / "predictions.jsonl"
    text = predictions.read_text()
    predictions.write_text(text[: len(text) // 2])
    (tmp_path / "torn" / "run.json").write_text('{"state": "fin')
    entries = [
        {"directory": p, "run_id": "x", "overrides": [p], "number": i}
        for i, p in enumerate(("good", "failed", "killed", "cut", "torn", "never"))
    ]
    entries[0]["run_id"] = json.loads((tmp_path / "good" / "run.json").read_text())["run_id"]
    entries[3]["run_id"] = json.loads((tmp_path / "cut" / "run.json").read_text())["run_id"]
    write_grid(tmp_path, entries)
    runs = {run.directory.name: run for run in read_study([tmp_path]).runs}
    assert {name: run.state for name, run in runs.items()} == {
        "good": "finished",
        "failed": "failed",
        "killed": "killed",
        "cut": "damaged",
        "torn": "damaged",
        "never": "waiting",
    }
    assert runs["failed"].error == error
    assert runs["killed"].error == "killed by signal 9"
    assert f"{predictions} is damaged: " in runs["cut"].error
    assert "predictions, metrics.json has 60" in runs["cut"].error
    assert "torn/run.json is damaged" in runs["torn"].error
    last = tables(read_study([tmp_path]))[-1]
    assert [row[1] for row in last.rows] == ["failed", "killed", "damaged", "damaged", "waiting"]


def test_a_run_of_an_earlier_config_is_outdated(written, tmp_path):
    written(tmp_path / "cell")
    entry = {"directory": "cell", "run_id": "another", "overrides": [], "number": 0}
    write_grid(tmp_path, [entry])
    assert [run.state for run in read_study([tmp_path]).runs] == ["outdated"]
