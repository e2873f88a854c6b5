"""The table of a grid: read from the files alone, whatever these files hold."""

import json
import shutil

import pytest

from medvqa.config.errors import UserError
from medvqa.sweep.commands import main_resume, main_status
from medvqa.sweep.display import grid_table, shortened
from medvqa.sweep.job import Job, State, Status
from medvqa.sweep.status import is_below, read_rows, strays, write_summary, write_sweep
from medvqa.tracking.record import write_json
from medvqa.tracking.terminal import MAX_CELL, console

DEEP = '{"a": ' * 5000 + "1" + "}" * 5000


@pytest.fixture
def sweep(tmp_path):
    """Two finished jobs, as their files describe them."""
    entries = []
    for number, layer in enumerate(("q_proj", "v_proj")):
        override = f"lora.target_modules=[{layer}]"
        entry = {"number": number, "overrides": [override], "name": override}
        entry |= {"directory": f"cell-{number}", "run_id": f"id-{number}"}
        entries.append(entry)
        directory = tmp_path / entry["directory"]
        run = {"state": "finished", "run_id": entry["run_id"], "config": {"seed": number}}
        results = {"test": {"eval/test/final/overall/exact_match": 0.25 * (1 + number)}}
        write_json(directory / "run.json", run | {"results": results, "plan": {"num_steps": 2}})
        (directory / "metrics.jsonl").write_text('{"step": 2, "loss": 1.5}\n')
        Status(state=State.finished, seconds=3.0).write(directory)
    about = {"jobs": entries, "arguments": ["-m"], "working_directory": str(tmp_path)}
    write_json(tmp_path / "sweep.json", about)
    return tmp_path


def test_a_finished_job_has_its_results(sweep):
    rows = read_rows(sweep)
    assert [(row.state, row.step, row.num_steps, row.exact_match) for row in rows] == [
        ("finished", 2, 2, 0.25),
        ("finished", 2, 2, 0.5),
    ]


def test_a_list_in_an_override_is_shown(sweep, capsys):
    main_status([str(sweep)])
    shown = capsys.readouterr().out
    assert "lora.target_modules=[q_proj]" in shown and "lora.target_modules=[v_proj]" in shown


def test_jobs_below_folders_of_their_own_are_found_again(sweep):
    """As hydra.sweep.subdir=${curriculum.name}/${seed} lays them out."""
    (sweep / "mixed").mkdir()
    jobs = []
    for number in (0, 1):
        (sweep / f"cell-{number}").rename(sweep / "mixed" / str(number))
        override = f"seed={number}"
        place = sweep / "mixed" / str(number)
        jobs.append(
            Job(number=number, overrides=(override,), name=override, directory=place,
                config={"seed": number}, run_id=f"id-{number}", sweep="grid")
        )  # fmt: skip
    write_sweep(sweep, jobs)
    assert [(row.state, row.exact_match) for row in read_rows(sweep)] == [
        ("finished", 0.25),
        ("finished", 0.5),
    ]
    assert strays(sweep) == []
    shutil.copytree(sweep / "mixed" / "0", sweep / "mixed" / "copy")
    assert strays(sweep) == ["mixed/copy (a copy of job 0) is no job of this grid and is left out"]


@pytest.mark.parametrize("name", ["../x", "/tmp/x", ".", "..", "a/../x", "a//b", "a/."])
def test_a_place_outside_the_grid_is_no_jobs_directory(name):
    assert not is_below(name)
    assert is_below("mixed/seed=1") and is_below("..a/.b")


def test_a_run_copied_over_a_job_is_no_result_of_that_job(sweep):
    shutil.rmtree(sweep / "cell-1")
    shutil.copytree(sweep / "cell-0", sweep / "cell-1")
    first, second = read_rows(sweep)
    assert (first.state, second.state) == ("finished", "other run")
    assert (second.exact_match, second.loss) == (None, None)
    assert second.error == "run.json is of another run, id-0"


def test_a_copy_beside_the_jobs_is_named(sweep, capsys):
    shutil.copytree(sweep / "cell-0", sweep / "cell-0 (2)")
    (line,) = strays(sweep)
    assert line == "cell-0 (2) (a copy of job 0) is no job of this grid and is left out"
    main_status([str(sweep)])
    assert line in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"jobs": 3}', '{"jobs": [1]}', '{"jobs": [{"number": 1}]}', DEEP, "[" * 99999],
)
@pytest.mark.parametrize("command", [main_status, main_resume])
def test_a_damaged_description_of_a_grid_is_one_line(sweep, command, text):
    (sweep / "sweep.json").write_text(text)
    with pytest.raises(
        UserError, match=r"^\S+sweep\.json is damaged: .+; the grid's own command writes"
    ):
        command([str(sweep)])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"config": {}, "results": 3, "plan": []}', DEEP])
def test_a_damaged_run_is_a_row_that_names_it(sweep, text):
    (sweep / "cell-1" / "run.json").write_text(text)
    (sweep / "cell-1" / "metrics.jsonl").write_text(f"[1]\n{DEEP}")
    row = read_rows(sweep)[1]
    assert (row.state, row.error) == ("failed", "run.json is missing or damaged")
    write_summary(sweep, read_rows(sweep))
    assert json.loads((sweep / "summary.json").read_text())["jobs"][1]["state"] == "failed"


def test_a_long_name_is_cut_in_the_table_and_whole_in_the_summary(sweep, capsys):
    stored = json.loads((sweep / "sweep.json").read_text())
    stored["jobs"][0]["name"] = "x" * 5000
    write_json(sweep / "sweep.json", stored)
    main_status([str(sweep)])
    assert capsys.readouterr().out.count("x") < 2 * MAX_CELL
    assert "x" * 5000 in (sweep / "summary.csv").read_text()


def test_resume_asks_for_a_secret_that_no_file_keeps(sweep):
    stored = json.loads((sweep / "sweep.json").read_text())
    stored["arguments"] = ["-m", "+hydra.job.env_set.HF_TOKEN=***", "seed=1,2"]
    write_json(sweep / "sweep.json", stored)
    with pytest.raises(UserError, match=r"again: \+hydra\.job\.env_set\.HF_TOKEN=\*\*\*"):
        main_resume([str(sweep)])


def test_a_small_terminal_shows_running_and_failed_jobs_first(sweep):
    rows = read_rows(sweep) + read_rows(sweep)
    (sweep / "cell-1" / "run.json").write_text("")
    rows += read_rows(sweep)
    assert [row.state for row in shortened(rows, 1)] == ["failed"]
    console().print(grid_table(rows, title="[red]text[/red]"))
