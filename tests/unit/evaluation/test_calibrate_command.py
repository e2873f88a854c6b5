"""`medvqa calibrate`: what may be calibrated on, and what is written."""

import dataclasses
import json
import math

import numpy as np
import pytest

from medvqa.config.errors import UserError
from medvqa.evaluation.calibrate_command import read_answers, recalibrated, report, summary
from medvqa.evaluation.calibration import calibrate

CLEAN = {"sets": {"test": {"image_overlap": 0.0}}}


def write(directory, rows):
    place = directory / "evaluation" / "final" / "test"
    place.mkdir(parents=True)
    (place / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


@pytest.fixture
def run(tmp_path):
    rng = np.random.default_rng(0)
    chances = rng.uniform(0.3, 1, 300)
    return write(
        tmp_path,
        [
            {
                "id": str(n),
                "cluster": str(n // 2),
                "logprob_mean": math.log(chance),
                "exact_match": bool(rng.random() < chance),
            }
            for n, chance in enumerate(chances)
        ],
    )


def test_answers_keep_confidence_picture_and_correctness(run):
    answers = read_answers(run, "test", CLEAN)
    assert len(answers) == 300
    assert len({answer.cluster for answer in answers}) == 150
    text = summary(calibrate(answers, max_error=0.35, delta=0.1))
    assert "held-out pictures" in text
    assert "certified for error rate <= 0.35" in text


@pytest.mark.parametrize(
    ("name", "contamination", "message"),
    [
        ("tset", CLEAN, "no answers to this set; it has test"),
        ("test", {"sets": {"test": {"image_overlap": 0.25}}}, "25.0% of its pictures were trained"),
        ("test", None, "does not record whether this set was trained on"),
    ],
)
def test_a_set_that_was_trained_on_or_not_answered_is_refused(run, name, contamination, message):
    with pytest.raises(UserError, match=message):
        read_answers(run, name, contamination)


def test_answers_without_confidence_are_refused(tmp_path):
    rows = [{"id": "a", "cluster": "a", "exact_match": True, "logprob_mean": None}]
    with pytest.raises(UserError, match="no log-probabilities"):
        read_answers(write(tmp_path, rows), "test", CLEAN)


def test_a_report_on_pictures_that_were_calibrated_on_is_refused(run):
    answers = read_answers(run, "test", CLEAN)
    result = calibrate(answers, max_error=0.35, delta=0.1)
    with pytest.raises(UserError, match="--report test: 150 of its 150 pictures were calibrated"):
        report(result, "test", answers, answers)
    others = [dataclasses.replace(a, cluster=f"other {a.cluster}") for a in answers]
    given = [a for a in others if result.answers(a.confidence)]
    text = report(result, "shifted", answers, others)
    assert f"{len(given) / 300:.1%} of 300 questions answered, error" in text


def test_a_merged_model_is_calibrated_by_its_own_answers(run):
    before = {"set": "test", "seed": 4, "max_error": 0.35, "delta": 0.1, "temperature": 9.0}
    (run / "evaluation" / "final").rename(run / "evaluation" / "merged")
    answers = read_answers(run, "test", CLEAN, phase="merged")
    expected = calibrate(answers, max_error=0.35, delta=0.1, seed=4)
    after = recalibrated(run, before, CLEAN)
    assert after["temperature"] == expected.temperature != before["temperature"]
    assert after["threshold"] == expected.threshold
    assert recalibrated(run, None, CLEAN) is None
