"""The Medico files: the challenge's own fields, and its own choice and order of questions."""

import re

import pytest

from medvqa.config.errors import UserError
from medvqa.export import medico
from medvqa.export.medico import TASK_1_FIELDS, TASK_2_FIELDS, task_1, task_2

datasets = pytest.importorskip("datasets")


def rows(count, **more):
    return [
        {
            **{"id": f"test-{n}", "question": f"q{n}", "prediction": f"a{n}", "cluster": f"cl{n}"},
            **{"level": str(1 + n % 3), **more},
        }
        for n in range(count)
    ]


def test_subtask_1_asks_what_the_challenges_template_asks(monkeypatch):
    monkeypatch.setattr(medico, "NUM_QUESTIONS", 15)
    made = task_1(rows(40))
    official = datasets.Dataset.from_list(rows(40)).shuffle(seed=42).select(range(15))
    assert [entry["question"] for entry in made] == official["question"]
    assert [entry["index"] for entry in made] == list(range(15))
    assert {tuple(entry) for entry in made} == {TASK_1_FIELDS}
    assert made[0]["answer"] == "a" + made[0]["question"][1:]


def test_subtask_2_shuffles_the_rows_of_complexity_1_alone(monkeypatch):
    monkeypatch.setattr(medico, "NUM_QUESTIONS", 9)
    made = task_2(rows(40, explanation="A polyp, upper left.", confidence=0.75))
    official = (
        datasets.Dataset.from_list(rows(40))
        .filter(lambda row: row["level"] == "1")
        .shuffle(seed=42)
        .select(range(9))
    )
    assert [entry["question"] for entry in made] == official["question"]
    assert [entry["val_id"] for entry in made] == list(range(9))
    assert {tuple(entry) for entry in made} == {(*TASK_2_FIELDS, "confidence_score")}


def test_a_confidence_is_left_out_where_none_is_recorded_and_refused_outside_its_range():
    assert "confidence_score" not in task_2(rows(3, explanation="x"))[0]
    with pytest.raises(UserError, match=re.escape("confidence 1.5 is not in [0, 1]")):
        task_2(rows(3, explanation="x", confidence=1.5))
    with pytest.raises(UserError, match="has no explanation, which subtask 2 requires"):
        task_2(rows(3, explanation=" "))
