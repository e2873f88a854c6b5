"""Answers to probes -> what each one shows, and the rates with intervals over pictures."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from medvqa.config.evaluation import BertScoreConfig, EvaluationConfig
from medvqa.data.example import Prediction, Score
from medvqa.evaluation.choice import read_choice
from medvqa.evaluation.comparison import run_mean
from medvqa.evaluation.evaluate import to_predictions
from medvqa.evaluation.generate import Answer
from medvqa.evaluation.metrics import exact_match, yes_or_no
from medvqa.evaluation.probes import ProbeQuestion
from medvqa.evaluation.score import ItemScores, score_predictions

MEASURES = {
    "normal_exact_match": "EM, normal",
    "exact_match": "EM, probed",
    "changed": "changed",
    "affirms": "affirms",
    "affirms_yes": "affirms, led to yes",
    "affirms_no": "affirms, led to no",
    "affirms_closed": "affirms, yes/no",
    "affirms_open": "affirms, open",
}
DENIAL = re.compile(
    r"\b(no|not|non|none|nothing|nowhere|never|neither|without|absent|cannot|unable|unknown|unclear"
    r"|unsure|uncertain|invalid|impossible|n/?a)\b|n['\u2019]t\b",
    re.IGNORECASE,
)


def probe_rows(
    questions: Sequence[ProbeQuestion],
    answers: Sequence[Answer],
    normal: Mapping[str, Mapping[str, Any]],
    config: EvaluationConfig,
) -> list[dict[str, Any]]:
    """Return one row per question of a probe: question, answer, and what the answer shows.

    Args:
        questions: Of one probe.
        answers: In the same order.
        normal: Row of predictions.jsonl by id, of the questions that the probe was made from.
        config: Its normaliser compares answers.
    """
    predictions = to_predictions([question.example for question in questions], answers)
    plain = replace(config, bertscore=BertScoreConfig(enabled=False), protocols=[])
    items = score_predictions(predictions, plain, device="cpu").items
    rows = []
    for question, prediction, item in zip(questions, predictions, items, strict=True):
        original = normal.get(question.original_id)
        shown = asdict(replace(prediction, cluster=question.cluster))
        values: dict[str, Any] = {
            "original_id": question.original_id,
            "falsehood": question.falsehood,
            "images": [image.name for image in question.example.images],
            "exact_match": item.exact_match,
            "affirms": _affirms(question.falsehood, prediction.prediction, item)
            if question.falsehood
            else None,
            "changed": None,
            "normal_prediction": None,
            "normal_exact_match": None,
        }
        if original:
            text = str(original["prediction"])
            values["normal_prediction"] = text
            values["normal_exact_match"] = original["exact_match"]
            if prediction.options in ((), tuple(original["options"])):
                values["changed"] = not _same(prediction, text, config)
        rows.append({**shown, **values})
    return rows


def _same(prediction: Prediction, text: str, config: EvaluationConfig) -> bool:
    """Return whether the answer equals the one to the original question."""
    if prediction.options:
        both = (read_choice(one, prediction.options) for one in (prediction.prediction, text))
        return len({choice.place for choice in both}) == 1
    return exact_match(prediction.prediction, [text], config.normalizer)


def _affirms(falsehood: str, answer: str, item: ItemScores) -> bool:
    """Return whether the answer affirms what is false in the question."""
    if falsehood == "option":
        return not item.exact_match and not item.nearest_option
    if falsehood == "open":
        return bool(answer.strip()) and not DENIAL.search(answer)
    return yes_or_no(answer) == {"yes": "yes", "closed": "yes", "no": "no"}[falsehood]


def probe_scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, Score]:
    """Return the mean of each measure that applies, with its interval over pictures."""
    scores = {}
    for name in MEASURES:
        rated = [(value, row["cluster"]) for row in rows
                 if (value := measured(row, name)) is not None]  # fmt: skip
        if rated:
            values, clusters = zip(*rated, strict=True)
            scores[name] = run_mean(list(map(float, values)), clusters)
    return scores


def measured(row: Mapping[str, Any], name: str) -> bool | None:
    """Return what a row says on a measure; None if it does not apply to the question."""
    value: bool | None = row["affirms"] if name.startswith("affirms") else row[name]
    return value if name in row or name == f"affirms_{row['falsehood']}" else None
