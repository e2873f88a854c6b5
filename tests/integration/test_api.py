"""A run from Python is the run of the command: same config, same answers, same files."""

import logging

import pytest

from medvqa.api import UserError, compose, report, run, score
from medvqa.tracking.record import read_json
from tests.conftest import SMOKE

OVERRIDES = [*SMOKE, "tracking.mode=offline"]


@pytest.fixture(scope="module")
def result(finished):
    """The run that the command has finished; the API reads it as the same run."""
    directory, _ = finished
    return run(compose(OVERRIDES), directory=directory, verbose=False)


def test_a_config_is_the_command_s(finished):
    directory, _ = finished
    config, stored = compose(OVERRIDES), read_json(directory / "run.json")
    assert config.settings["run_id"] == stored["run_id"]
    assert config.values == stored["config"]
    assert config.typed.training.max_steps == 12
    assert str(config.directory).startswith("outputs/tiny-phantom-open_first-s0-")
    assert "max_steps: 12" in str(config)


def test_a_finished_run_is_read_with_its_scores_and_answers(result, finished):
    _, answer = finished
    assert result.headline == result.scores()["overall"]["exact_match"].mean
    assert len(result.predictions()) == result.scores()["overall"]["exact_match"].num_examples
    assert result.record["headline"] == result.headline
    assert str(result).splitlines()[0].strip() in answer.stdout
    assert "after_open" in result._repr_html_()


def test_a_run_from_python_answers_as_the_command_does(result, tmp_path, capsys):
    before = [*logging.getLogger().handlers]
    again = run(compose(SMOKE), directory=tmp_path / "run")
    assert again.predictions() == result.predictions()
    assert again.record["order_sha256"] == result.record["order_sha256"]
    assert "12 steps" in capsys.readouterr().out
    assert "12 steps" in (tmp_path / "run" / "medvqa.log").read_text()
    assert logging.getLogger().handlers == before


def test_a_report_shows_its_page_and_writes_the_command_s_files(result, tmp_path):
    made = report([result], num_samples=50, title="one run")
    assert 'srcdoc="' in made._repr_html_() and "one run" in made.html
    assert "1 runs: 1 finished; 1 arms" in str(made)
    page = made.write(tmp_path, figures=False)
    assert page.read_text(encoding="utf-8") == made.html
    assert {"results.csv", "runs.csv", "tables.md"} <= {path.name for path in tmp_path.iterdir()}


def test_an_answers_file_is_scored_by_any_protocol(result):
    file = result.directory / "evaluation/final/test/predictions.jsonl"
    own = score(file, bertscore="off").values["summary"]["overall"]["exact_match"]["mean"]
    assert own == result.headline
    scores = score(str(file), "llava_med")
    assert set(scores.values["protocols"]) == {"llava_med"}
    assert str(file) in str(scores) and "<pre" in scores._repr_html_()


def test_a_phase_that_was_not_evaluated_is_named_with_those_that_were(result):
    with pytest.raises(UserError, match="no evaluation test/blind; the run has test/majority"):
        result.scores(phase="blind")
