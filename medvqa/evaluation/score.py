"""Predictions -> scores by question type, each a mean with interval and n."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medvqa.config.errors import about
from medvqa.config.evaluation import EvaluationConfig
from medvqa.data.example import AnswerType, Prediction, Score
from medvqa.evaluation import metrics
from medvqa.evaluation.bertscore import bert_scores
from medvqa.evaluation.choice import correct_option, read_choice
from medvqa.evaluation.comparison import run_mean
from medvqa.evaluation.protocols.protocol import score_protocol
from medvqa.evaluation.protocols.table import PROTOCOLS
from medvqa.evaluation.rephrasing import agreement

if TYPE_CHECKING:
    from rich.table import Table

Summary = dict[str, dict[str, Score]]
GROUPS = ("overall", "open", "closed")
SHOWN = {
    "exact_match": "EM",
    "f1": "F1",
    "numeric_exact_match": "numeric EM",
    "closed_accuracy": "closed acc.",
    "bertscore_f1": "BERTScore F1",
}
# What the table of `medvqa score` and of a run shows as well.
COLUMNS = {
    **SHOWN,
    "token_recall": "recall",
    "unparsable": "unparsable",
    "nearest_option": "nearest option",
    "agreement": "agreement",
}


@dataclass(frozen=True, kw_only=True)
class ItemScores:
    """Scores of one prediction; None where the metric does not apply to the question.

    Attributes:
        exact_match: Whether the normalised answer equals a reference.
        f1: Token F1 with the best reference.
        token_recall: Share of the best reference's tokens that the answer holds.
        numeric_exact_match: Whether the first numbers agree within the tolerance.
        closed_accuracy: Whether a closed question was answered rightly.
        unparsable: Whether a yes/no answer could not be read.
        bertscore_f1: BERTScore with the best reference.
        nearest_option: Of a question with options, whether none could be read from the answer, so
            that the nearest one was taken.
        agreement: Share of rephrasings that were answered alike.
    """

    exact_match: bool
    f1: float
    token_recall: float
    numeric_exact_match: bool | None
    closed_accuracy: bool | None
    unparsable: bool | None
    bertscore_f1: float | None
    nearest_option: bool | None = None
    agreement: float | None = None


METRICS = tuple(ItemScores.__annotations__)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Items in the order of the predictions, their means by group, BERTScore's settings.

    Attributes:
        protocols: Means by protocol and its own metrics, of `evaluation.protocols`.
    """

    items: tuple[ItemScores, ...]
    summary: Summary
    bertscore: dict[str, Any] | None
    protocols: Summary


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
    scored = list(zip(predictions, items, strict=True))
    summary = {
        group: _means([(p.cluster, item) for p, item in scored if group in _groups_of(p)], config)
        for group in _groups(predictions)
    }
    protocols = {
        name.value: score_protocol(
            PROTOCOLS[name], predictions, num_samples=config.bootstrap_samples, seed=seed
        )
        for name in config.protocols
    }
    return Scored(
        items=items,
        summary=summary,
        bertscore=bert.record() if bert else None,
        protocols=protocols,
    )


def _score_item(p: Prediction, config: EvaluationConfig, bertscore: float | None) -> ItemScores:
    """Score the answer; to a question with options, the option that the answer names."""
    answer, references = p.prediction, p.references
    choice = numeric = closed = None
    if p.options:
        with about(f"question {p.id}"):
            correct = correct_option(references, p.options)
        choice = read_choice(answer, p.options)
        answer, references = p.options[choice.place], (p.options[correct],)
        is_right = closed = choice.place == correct
    else:
        kind = config.numeric_tolerance_kind
        is_right = metrics.exact_match(answer, references, config.normalizer)
        closed = metrics.closed_answer(answer, references, config.normalizer)
        numeric = metrics.numeric_match(answer, references, config.numeric_tolerance, kind)
    is_closed = p.answer_type == "closed"
    return ItemScores(
        exact_match=is_right,
        f1=metrics.token_f1(answer, references, config.normalizer),
        token_recall=metrics.token_recall(answer, references, config.normalizer),
        numeric_exact_match=numeric,
        closed_accuracy=bool(closed) if is_closed else None,
        unparsable=closed is None if is_closed else None,
        bertscore_f1=bertscore,
        nearest_option=choice.how == "nearest" if choice else None,
        agreement=agreement(p, config.normalizer),
    )


def _groups_of(prediction: Prediction) -> tuple[str, ...]:
    return (
        "overall",
        prediction.answer_type,
        f"split:{prediction.split}",
        f"source:{prediction.source}",
    )


def _groups(predictions: Sequence[Prediction]) -> list[str]:
    """Return the groups to show: a split or source only where there are several."""
    _, types, splits, sources = (
        sorted(set(column)) for column in zip(*map(_groups_of, predictions), strict=True)
    )
    shown = [part for part in (splits, sources) if len(part) > 1]
    return ["overall", *reversed(types), *(group for part in shown for group in part)]


def _means(members: Sequence[tuple[str, ItemScores]], config: EvaluationConfig) -> dict[str, Score]:
    scores = {}
    for metric in METRICS:
        rated = [(getattr(item, metric), cluster) for cluster, item in members]
        rated = [(float(value), cluster) for value, cluster in rated if value is not None]
        if rated:
            values, clusters = zip(*rated, strict=True)
            is_rescaled = metric == "bertscore_f1" and config.bertscore.rescale
            bounds = (-math.inf, math.inf) if is_rescaled else (0.0, 1.0)
            scores[metric] = run_mean(values, clusters, bounds=bounds)
    return scores


def majority_answers(
    training: Sequence[tuple[AnswerType, str]], questions: Sequence[AnswerType]
) -> list[str]:
    """Return the training pool's commonest answer of each question's type.

    Ties go to the alphabetically first; a type that the pool lacks gets the overall commonest.
    """

    def commonest(answers: Sequence[str]) -> str:
        counts = Counter(answer.strip().lower() for answer in answers)
        return min(counts, key=lambda answer: (-counts[answer], answer))

    answers = [answer for _, answer in training]
    by_type = {
        kind: commonest([answer for other, answer in training if other == kind] or answers)
        for kind in set(questions)
    }
    return [by_type[kind] for kind in questions]


def summary_table(phases: Sequence[tuple[str, Summary]], *, title: str) -> "Table":
    """Return a table with a row per phase and group: mean, 95 % interval, n of each metric."""
    from rich.table import Table

    shown = [m for m in COLUMNS if any(m in scores for _, s in phases for scores in s.values())]
    table = Table("", "questions", *(COLUMNS[m] for m in shown), title=title, title_justify="left")
    for phase, summary in phases:
        table.add_section()
        for position, (group, scores) in enumerate(summary.items()):
            row = (cell(scores.get(metric)) for metric in shown)
            table.add_row("" if position else phase, group, *row)
    return table


def cell(score: Score | None) -> str:
    """Return a score as the tables show it."""
    if score is None:
        return "-"
    return f"{score.mean:.3f} [{score.low:.3f}, {score.high:.3f}] n={score.num_examples}"
