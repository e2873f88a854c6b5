"""A directory is continued or shown for the very same run only: settings, rows, code."""

import ast
import logging

import pytest

from medvqa.config.errors import UserError
from medvqa.config.typed import with_defaults
from medvqa.tracking import identity
from medvqa.tracking.record import write_json
from tests.unit.config.test_compose import composed, resolved_plain

ROWS = {"training": "a" * 64, "test": "b" * 64}
ANSWERS = ("metrics.json", "predictions.jsonl")


@pytest.fixture(scope="module")
def config():
    return resolved_plain(composed())


def changed(config, group, **values):
    return {**config, group: {**config[group], **values}}


@pytest.fixture
def directory(tmp_path, config):
    """Return a writer of a run directory in a state, half done unless said otherwise."""
    identity._warn.cache_clear()

    def write(state="running", *, begun=True, **values):
        if begun:
            (tmp_path / "metrics.jsonl").write_text("")
        if state == "finished":
            for name in config["data"]["evaluation"]:
                place = tmp_path / "evaluation" / "final" / name
                place.mkdir(parents=True, exist_ok=True)
                for file in ANSWERS:
                    (place / file).write_text("{}")
        record = {"state": state, "config": config, "rows": ROWS, "code": identity.code()}
        write_json(tmp_path / "run.json", {**record, **values})
        return tmp_path

    return write


def rows():
    return ROWS


@pytest.mark.parametrize(("state", "finished"), [("running", False), ("finished", True)])
def test_the_same_run_is_continued_or_shown(directory, config, state, finished, caplog):
    assert identity.is_finished(directory(state), config, rows) is finished
    assert caplog.text == ""


@pytest.mark.parametrize("file", ANSWERS)
def test_a_finished_run_without_its_answers_is_refused_and_the_file_named(directory, config, file):
    place = directory("finished")
    (place / "evaluation" / "final" / "test" / file).unlink()
    with pytest.raises(UserError, match=rf"its evaluation/final/test/{file} is gone; .*fresh=true"):
        identity.is_finished(place, config, rows)


def test_an_empty_directory_holds_no_run(tmp_path, config):
    assert not identity.is_finished(tmp_path, config, rows)


@pytest.mark.parametrize("state", ["running", "failed", "interrupted", "finished"])
def test_other_settings_are_refused_in_one_line_that_names_each(directory, config, state):
    other = changed(changed(config, "training", learning_rate=1e-5), "lora", alpha=1.0)
    with pytest.raises(UserError) as caught:
        identity.is_finished(directory(state), other, rows)
    text = str(caught.value)
    assert "training.learning_rate 0.002 -> 1e-05" in text
    assert "lora.alpha 32.0 -> 1.0" in text
    assert "fresh=true" in text and "another directory" in text
    assert "\n" not in text


@pytest.mark.parametrize("state", ["running", "finished"])
@pytest.mark.parametrize("name", ROWS)
def test_edited_rows_are_refused_and_named(directory, config, state, name):
    with pytest.raises(UserError, match=r"rows.* have changed, .{8} -> cccccccc.*fresh=true"):
        identity.is_finished(directory(state), config, lambda: {**ROWS, name: "c" * 64})


@pytest.mark.parametrize(
    "code", [None, {"sha256": "other"}, {**identity.code(), "transformers": "4.0"}]
)
def test_other_code_may_show_a_run_with_one_warning_but_not_continue_it(
    directory, config, code, caplog
):
    caplog.set_level(logging.WARNING)
    place = directory("finished", code=code)
    assert identity.is_finished(place, config, rows)
    assert identity.is_finished(place, config, rows)
    assert caplog.text.count("fresh=true") == 1
    with pytest.raises(UserError, match=r"was begun by other code \(.*\).*fresh=true"):
        identity.is_finished(directory("interrupted", code=code), config, rows)


def test_a_run_that_computed_nothing_yet_may_start_with_other_settings(directory, config):
    place = directory("failed", begun=False, code=None)
    assert not identity.is_finished(place, changed(config, "lora", r=4), rows)


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints/step-000002", "results.json"])
def test_results_without_a_record_are_neither_continued_nor_overwritten(tmp_path, config, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"holds {name} without run.json"):
        identity.is_finished(tmp_path, config, rows)


def test_a_file_in_the_way_is_refused_before_a_run_trains(tmp_path, config):
    (tmp_path / "adapter").touch()
    with pytest.raises(UserError, match="adapter is a file where a run makes a directory"):
        identity.is_finished(tmp_path, config, rows)


def test_a_diverged_run_is_not_continued(directory, config):
    with pytest.raises(UserError, match=r"has diverged \(at step 2\); say fresh=true"):
        identity.is_finished(directory("diverged", error="at step 2"), config, rows)


@pytest.mark.parametrize("key", ["tracking", "fresh"])
def test_what_cannot_change_a_result_makes_no_other_run(directory, config, key):
    other = {**config, "fresh": True} if key == "fresh" else changed(config, key, project="x")
    assert identity.is_finished(directory("finished"), other, rows)


def test_the_config_of_an_earlier_version_is_the_same_run(directory, config):
    lora = {name: value for name, value in config["lora"].items() if name != "r"}
    evaluation = {**config["evaluation"], "cache": None}
    del evaluation["blind"]
    earlier = {**config, "lora": {**lora, "rank": 16}, "evaluation": evaluation}
    assert identity.is_finished(directory("finished", config=earlier), config, rows)
    with pytest.raises(UserError, match=r"lora\.r 8 -> 16"):
        earlier["lora"]["rank"] = 8
        identity.is_finished(directory("finished", config=earlier), config, rows)


def test_a_setting_that_this_version_does_not_know_is_one_line(config):
    with pytest.raises(UserError, match=r"config of an earlier version: unknown key 'lora.old'"):
        with_defaults(changed(config, "lora", old=1))


def test_docstrings_comments_and_layout_are_no_code():
    one = 'def f(a):\n    """Say this."""\n    # so\n    return a+1\n'
    same = 'def f(a):\n    """Say that."""\n    return (a + 1)\n'
    other = "def f(a):\n    return a + 2\n"
    texts = [ast.unparse(identity.without_docstrings(ast.parse(text))) for text in (one, same)]
    assert texts[0] == texts[1]
    assert texts[0] != ast.unparse(identity.without_docstrings(ast.parse(other)))


def test_everything_that_computes_is_part_of_the_code():
    files = {str(path.relative_to(identity.PACKAGE)) for path in identity.computing_files()}
    assert {"run.py", "curriculum.py", "training/loop.py", "evaluation/metrics.py"} <= files
    top = {path.name for path in identity.PACKAGE.iterdir()}
    assert top >= identity.NOT_COMPUTING
    assert not any(name.startswith(("report/", "serve/", "sweep/")) for name in files)


def test_a_table_of_columns_is_code_and_its_comments_are_none(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "PACKAGE", tmp_path)
    table, hashes = tmp_path / "data" / "tables.yaml", []
    table.parent.mkdir()
    for text in ("a: {answer: one}\n", "# so\na:\n  answer: one\n", "a: {answer: two}\n"):
        table.write_text(text)
        hashes.append(identity._code_sha256.__wrapped__())
    assert hashes[0] == hashes[1] != hashes[2]
