"""Probes of a real model: what it answered is on the disk, and the rates follow from it."""

import dataclasses
import json

import pytest

from medvqa.config.evaluation import BertScoreConfig, EvaluationConfig, ProbeName
from medvqa.evaluation.answering import by_model
from medvqa.evaluation.evaluate import Evaluator
from medvqa.evaluation.generate import Answer
from medvqa.evaluation.probed import probe_scores
from medvqa.evaluation.probes import probe_questions
from medvqa.evaluation.probing import (
    ask_probes,
    probe_rows,
    probes_table,
    read_probes,
)
from medvqa.tracking.record import read_lines
from medvqa.tracking.terminal import console

CONFIG = EvaluationConfig(
    bertscore=BertScoreConfig(enabled=False),
    probes=list(ProbeName),
    rephrasings=2,
    batch_size=16,
    max_new_tokens=4,
)


def said(*texts):
    return [Answer(text=text) for text in texts]


def rates(name, examples, answer, normal=None):
    """Return the rates where `answer` says what the model says to a probe's question."""
    questions = probe_questions([ProbeName(name)], examples, seed=0)[ProbeName(name)]
    answers = said(*(answer(question) for question in questions))
    rows = probe_rows(questions, answers, normal or {}, CONFIG)
    return {measure: score.mean for measure, score in probe_scores([rows]).items()}


@pytest.fixture(scope="module")
def closed(phantoms):
    return [e for e in phantoms if e.answers[0] in ("yes", "no")]


@pytest.fixture(scope="module")
def normal(phantoms):
    return {
        e.id: {"prediction": e.answers[0], "exact_match": True, "options": []} for e in phantoms
    }


def test_a_model_that_says_what_it_is_led_to_affirms_every_false_lead(closed, normal):
    led = rates("leading", closed, lambda q: q.example.id.rpartition("_")[2], normal)
    assert (led["affirms"], led["affirms_yes"], led["affirms_no"]) == (1, 1, 1)
    assert (led["normal_exact_match"], led["exact_match"], led["changed"]) == (1, 0.5, 0.5)


def test_a_model_that_keeps_to_the_truth_affirms_nothing(closed, normal):
    steady = rates("leading", closed, lambda q: q.example.answers[0], normal)
    assert (steady["affirms"], steady["changed"], steady["exact_match"]) == (0, 0, 1)


def test_a_model_that_always_says_yes_is_told_from_one_that_follows_any_lead(closed, normal):
    yes = rates("leading", closed, lambda q: "yes", normal)
    assert (yes["affirms_yes"], yes["affirms_no"]) == (1, 0)


@pytest.mark.parametrize(
    ("text", "affirms"),
    [("left lung", 1), ("There is none.", 0), ("I do not know", 0), ("It isn't there", 0), ("", 0)],
)
def test_only_a_place_affirms_an_invented_finding(phantoms, text, affirms):
    measured = rates("fake", phantoms, lambda q: text if q.falsehood == "open" else "no")
    assert measured["affirms_open"] == affirms
    assert measured["affirms_closed"] == 0


@pytest.mark.parametrize(
    ("text", "affirms", "right"), [("A", 1, 0), ("C", 0, 1), ("something else", 0, 0)]
)
def test_a_wrong_option_affirms_and_no_option_does_not(phantoms, text, affirms, right):
    asked = [
        dataclasses.replace(phantoms[n], options=("lung", "brain", "liver"), answers=("brain",))
        for n in (0, 4)
    ]
    measured = rates("none_of_the_above", asked, lambda q: text)
    assert (measured["affirms"], measured["exact_match"]) == (affirms, right)


def test_a_model_is_asked_all_probes_and_continues_where_it_stopped(
    tiny, encoder, phantoms, tmp_path, caplog, capsys
):
    examples = [e for e in phantoms if len(e.images) == 1][:6]
    evaluator = Evaluator({"test": examples}, CONFIG, directory=tmp_path, seed=3)
    by_tiny = by_model(tiny, encoder, CONFIG)
    evaluator.phase("final", 5, by_tiny)
    evaluator.phase("blind", 5, by_tiny, show_images=False)
    evaluator.join_blind()
    asked = []

    def answer(place, questions):
        asked.append(place.parent.name)
        return by_tiny(place, questions)

    results = ask_probes(evaluator, answer, 5)
    assert asked == ["blank", "other_patient", "leading", "fake"]
    assert "none_of_the_above probe asks nothing on test" in caplog.text
    assert ask_probes(evaluator, answer, 5) == results == read_probes(tmp_path)
    assert len(asked) == 4  # nothing is asked again
    last = results[-1]
    assert (last.probe, last.num_questions, bool(last.reason)) == ("none_of_the_above", 0, True)

    final = read_lines(tmp_path / "evaluation/final/test/predictions.jsonl")
    blind = read_lines(tmp_path / "evaluation/blind/test/predictions.jsonl")
    assert [row["blind_prediction"] for row in final] == [row["prediction"] for row in blind]
    assert all(len(row["rephrased"]) == 2 and 0 <= row["agreement"] <= 1 for row in final)
    for name in asked:
        path = tmp_path / f"evaluation/probes/{name}/test"
        rows = read_lines(path / "predictions.jsonl")
        stored = json.loads((path / "metrics.json").read_text())["scores"]
        by_hand = [row["changed"] for row in rows if row["changed"] is not None]
        if by_hand:
            assert stored["changed"]["mean"] == pytest.approx(sum(by_hand) / len(by_hand))
        normal = {row["id"]: row["prediction"] for row in final}
        assert all(row["normal_prediction"] == normal.get(row["original_id"]) for row in rows)
    console().print(probes_table(results, "probes"))
    assert "none of the above: not asked, no question has options" in capsys.readouterr().out


def test_a_rephrasing_is_answered_as_if_it_were_asked_alone(tiny, encoder, phantoms, tmp_path):
    from medvqa.evaluation.rephrasing import rephrased

    examples = phantoms[:3]
    evaluator = Evaluator({"test": examples}, CONFIG, directory=tmp_path, seed=0)
    by_tiny = by_model(tiny, encoder, CONFIG)
    evaluator.phase("final", 0, by_tiny)
    rows = read_lines(tmp_path / "evaluation/final/test/predictions.jsonl")
    for row, example in zip(rows, examples, strict=True):
        alone = by_tiny(tmp_path / "alone", rephrased(example, 2))
        assert row["rephrased"] == [own.text for own in alone]
        share = sum(own.text == row["prediction"] for own in alone) / 2
        assert row["agreement"] == share
