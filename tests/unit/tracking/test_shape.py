"""Stored values are checked against the types of their readers; one line names what is wrong."""

import pytest

from medvqa.config.errors import UserError
from medvqa.config.schema import Config
from medvqa.data.example import Score
from medvqa.tracking.run_file import RunFile, StepFile
from medvqa.tracking.shape import DamagedError, checked, misfit, reading

SCORE = {"mean": 0.5, "low": "NaN", "high": 1, "num_examples": 3}


@pytest.mark.parametrize(
    ("value", "kind", "reason"),
    [
        (SCORE, Score, None),
        (SCORE | {"mean": None}, Score, "mean is None, not a number"),
        (SCORE | {"mean": "half"}, Score, "mean is 'half', not a number"),
        (SCORE | {"mean": float("inf")}, Score, "mean is inf, not a number"),
        ({k: v for k, v in SCORE.items() if k != "low"}, Score, "low is missing"),
        ([], Score, "it is [], not an object"),
        ({"plan": {"stages": [{}]}}, RunFile, None),
        ({"plan": {"stages": [{}, 7]}}, RunFile, "plan.stages[1] is 7, not an object"),
        ({"seconds": {"load": True, "data": "x"}}, RunFile, "seconds.data is 'x', not a number"),
        ({"code": None, "peak_gpu_bytes": None}, RunFile, None),
        ({"state": "\ud800"}, RunFile, r"state is '\ud800', not text"),
        ({"state": 3 * "long " * 9}, RunFile, None),
        ({"step": 1, "loss": 0.5}, StepFile, "stage is missing"),
        ({"model": {"max_pixels": None, "load_in_4bit": False}}, Config, None),
        ({"model": {"load_in_4bit": "perhaps"}}, Config,
         "model.load_in_4bit is 'perhaps', not true or false"),
        ({"evaluation": {"probes": ["blank", None]}}, Config,
         "evaluation.probes[1] is None, not text"),
    ],
)  # fmt: skip
def test_the_first_value_that_does_not_fit_is_named(value, kind, reason):
    assert misfit(value, kind) == reason


def test_the_message_names_the_place_and_the_fix():
    with pytest.raises(DamagedError, match=r"^a.jsonl, line 3 is damaged: id is missing; say fr"):
        checked({}, dict[str, str], "a.jsonl, line 3", ["id"])


def test_what_a_reader_of_a_whole_record_raises_is_one_line_too():
    message = "^run.json is damaged: 'ended' is missing; say fresh"
    with pytest.raises(DamagedError, match=message), reading("run.json"):
        {}["ended"]
    with pytest.raises(UserError, match=r"^kept$"), reading("run.json"):
        raise UserError("kept")
