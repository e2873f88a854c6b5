"""Groups and means, the majority answer, and `medvqa score` on real answers."""

import pytest

from medvqa.config.evaluation import BertScoreConfig, EvaluationConfig
from medvqa.data.example import Prediction
from medvqa.evaluation.phase_scores import write_evaluation
from medvqa.evaluation.predictions import read_predictions
from medvqa.evaluation.score import (
    majority_answers,
    score_predictions,
)

CONFIG = EvaluationConfig(bootstrap_samples=50, bertscore=BertScoreConfig(enabled=False))


def prediction(number, answer, reference, kind="closed", **others):
    fields = {"source": "s", "split": "test", "cluster": f"image {number // 2}", **others}
    return Prediction(
        id=str(number),
        question="q?",
        references=(reference,),
        prediction=answer,
        answer_type=kind,
        **fields,
    )


FOUR = [
    prediction(0, "yes", "yes"),
    prediction(1, "perhaps", "no"),
    prediction(2, "3 cm", "3 cm", "open"),
    prediction(3, "lung", "left lung", "open"),
]


def test_means_are_given_by_type_with_their_own_n():
    summary = score_predictions(FOUR, CONFIG, device="cpu").summary
    assert set(summary) == {"overall", "open", "closed"}
    assert summary["overall"]["exact_match"].mean == 0.5
    assert summary["open"]["f1"].mean == pytest.approx((1 + 2 / 3) / 2)
    assert summary["closed"]["closed_accuracy"].mean == 0.5
    assert summary["closed"]["unparsable"].mean == 0.5
    assert summary["overall"]["numeric_exact_match"].num_examples == 1
    assert "closed_accuracy" not in summary["open"]


def test_splits_are_shown_apart_where_there_are_several():
    rows = [*FOUR, prediction(4, "no", "yes", split="train")]
    summary = score_predictions(rows, CONFIG, device="cpu").summary
    assert summary["split:train"]["exact_match"].mean == 0
    assert summary["split:test"]["exact_match"].num_examples == 4


def test_the_majority_answer_is_taken_by_type_with_alphabetical_ties():
    training = [("closed", "yes"), ("closed", "No"), ("closed", "no"), ("open", "ct")]
    training += [("open", "axial")]
    answers = majority_answers(training, [p.answer_type for p in FOUR])
    assert answers == ["no", "no", "axial", "axial"]


def test_written_predictions_read_back(tmp_path):
    scored = score_predictions(FOUR, CONFIG, device="cpu")
    place = tmp_path / "final" / "test"
    write_evaluation(place, 0, FOUR, scored, CONFIG)
    assert read_predictions(place / "predictions.jsonl").predictions == FOUR
