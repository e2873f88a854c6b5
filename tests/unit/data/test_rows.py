"""Open or closed by rule: what the rules say about real rows, beside the official labels."""

import json
from collections import Counter

import pytest

from medvqa.config.data import SourceConfig
from medvqa.data.pool import load_examples
from medvqa.data.rows import offered_type, yes_no_type


@pytest.fixture(scope="module")
def vqa_rad_test(shared):
    path = str(shared / "data" / "vqa_rad")
    return load_examples(SourceConfig(name="vqa_rad", path=path, split="test"), seed=0)


def test_the_yes_no_rule_calls_251_of_vqa_rads_272_closed_questions_closed(vqa_rad_test):
    assert Counter(e.answer_type for e in vqa_rad_test) == {"closed": 272, "open": 179}
    by_rule = Counter(yes_no_type(e.answers[0]) for e in vqa_rad_test)
    assert by_rule == {"closed": 251, "open": 200}
    missed = [e for e in vqa_rad_test if e.answer_type != yes_no_type(e.answers[0])]
    assert {e.answer_type for e in missed} == {"closed"}
    assert len(missed) == 21


@pytest.mark.parametrize("answer", ["Yes.", "no!", "YES。", '"no"', " yes ,", "(No)"])
def test_marks_around_yes_or_no_leave_a_question_closed(answer):
    assert yes_no_type(answer) == "closed"
    assert yes_no_type(answer + " left") == "open"


def test_the_yes_no_rule_calls_355_of_slakes_416_closed_questions_closed(shared):
    rows = json.loads((shared / "data/slake_text/test.json").read_text(encoding="utf-8"))
    english = [row for row in rows if row["q_lang"] == "en"]
    pairs = Counter(
        (row["answer_type"].strip(), yes_no_type(str(row["answer"]))) for row in english
    )
    assert pairs == {("CLOSED", "closed"): 355, ("CLOSED", "open"): 61, ("OPEN", "open"): 645}


def test_vqa_med_is_closed_where_a_question_offers_its_answer(shared):
    folder = shared / "data" / "vqa_med_2019_text" / "train" / "QAPairsByCategory"
    closed = {}
    for path in sorted(folder.iterdir()):
        rows = [line.split("|") for line in path.read_text(encoding="utf-8").splitlines()]
        closed[path.name[3:-10]] = sum(offered_type(row[1], row[2:]) == "closed" for row in rows)
    assert closed == {"Modality": 1629, "Plane": 0, "Organ": 0, "Abnormality": 110}
