"""Predictions -> scores by question type; `medvqa score` for anybody's predictions file."""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medvqa.config.evaluation import EvaluationConfig
from medvqa.data.example import AnswerType, Prediction, Score
from medvqa.evaluation import metrics
from medvqa.evaluation.bertscore import bert_scores
from medvqa.evaluation.statistics import clustered_bootstrap

Summary = dict[str, dict[str, Score]]


@dataclass(frozen=True, kw_only=True)
class ItemScores:
    """Scores of one prediction; None where the metric does not apply to the question."""

    exact_match: bool
    f1: float
    token_recall: float
    numeric_exact_match: bool | None
    closed_accuracy: bool | None
    unparsable: bool | None
    bertscore_f1: float | None


METRICS = tuple(ItemScores.__annotations__)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Items in the order of the predictions, their means by group, BERTScore's settings."""

    items: tuple[ItemScores, ...]
    summary: Summary
    bertscore: dict[str, Any] | None


def score_predictions(
    predictions: Sequence[Prediction], config: EvaluationConfig, *, device: str, seed: int = 0
) -> Scored:
    """Score every prediction and average by group.

    Groups: overall, open, closed; `split:` and `source:` where there is more than one.

    Raises:
        ValueError: If there are no predictions.
    """
    bert = None
    if config.bertscore.enabled:
        pairs = [(p.prediction, p.references) for p in predictions]
        bert = bert_scores(pairs, config.bertscore, device=device)
    items = tuple(
        _score_item(p, config, bert.f1[i] if bert else None) for i, p in enumerate(predictions)
    )
    summary = {
        group: _means(
            [(p, i) for p, i in zip(predictions, items, strict=True) if belongs(p)],
            num_samples=config.bootstrap_samples,
            seed=seed,
        )
        for group, belongs in _groups(predictions).items()
    }
    return Scored(items=items, summary=summary, bertscore=bert.record() if bert else None)


def _score_item(
    prediction: Prediction, config: EvaluationConfig, bertscore: float | None
) -> ItemScores:
    said, wanted, normalizer = prediction.prediction, prediction.references, config.normalizer
    closed = None
    if prediction.answer_type == "closed":
        closed = metrics.closed_answer(said, wanted, normalizer)
    return ItemScores(
        exact_match=metrics.exact_match(said, wanted, normalizer),
        f1=metrics.token_f1(said, wanted, normalizer),
        token_recall=metrics.token_recall(said, wanted, normalizer),
        numeric_exact_match=metrics.numeric_match(said, wanted, config.numeric_tolerance),
        closed_accuracy=bool(closed) if prediction.answer_type == "closed" else None,
        unparsable=closed is None if prediction.answer_type == "closed" else None,
        bertscore_f1=bertscore,
    )


def _groups(predictions: Sequence[Prediction]) -> dict[str, Callable[[Prediction], bool]]:
    groups: dict[str, Callable[[Prediction], bool]] = {"overall": lambda _: True}
    for answer_type in ("open", "closed"):
        if any(p.answer_type == answer_type for p in predictions):
            groups[answer_type] = lambda p, t=answer_type: p.answer_type == t  # type: ignore[misc]
    for field in ("split", "source"):
        values = sorted({getattr(p, field) for p in predictions})
        if len(values) > 1:
            for value in values:
                groups[f"{field}:{value}"] = (
                    lambda p, f=field, v=value: getattr(p, f) == v  # type: ignore[misc]
                )
    return groups


def _means(
    members: Sequence[tuple[Prediction, ItemScores]], *, num_samples: int, seed: int
) -> dict[str, Score]:
    scores = {}
    for metric in METRICS:
        rated = [(p.cluster, getattr(i, metric)) for p, i in members]
        rated = [(cluster, float(value)) for cluster, value in rated if value is not None]
        if rated:
            scores[metric] = clustered_bootstrap(
                [value for _, value in rated],
                [cluster for cluster, _ in rated],
                num_samples=num_samples,
                seed=seed,
            )
    return scores


def majority_baseline(
    training: Sequence[tuple[AnswerType, str]], predictions: Sequence[Prediction]
) -> list[Prediction]:
    """Return the predictions answered with the training pool's commonest answer of their type.

    Ties go to the alphabetically first; a type that the pool lacks gets the overall commonest.
    """

    def commonest(answers: Sequence[str]) -> str:
        counts = Counter(answer.strip().lower() for answer in answers)
        return min(counts, key=lambda answer: (-counts[answer], answer))

    overall = commonest([answer for _, answer in training])
    of_type = {
        kind: commonest([answer for other, answer in training if other == kind])
        for kind in {kind for kind, _ in training}
    }
    return [replace(p, prediction=of_type.get(p.answer_type, overall)) for p in predictions]


def write_predictions(
    path: Path, predictions: Sequence[Prediction], items: Sequence[ItemScores]
) -> None:
    """Write one JSON line a prediction with its scores; the file is never seen half written."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        for prediction, item in zip(predictions, items, strict=True):
            row = {**asdict(prediction), **asdict(item)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())  # before metrics.json says that it is whole
    partial.replace(path)
