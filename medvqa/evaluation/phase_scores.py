"""Scores of one phase of a run on one set, as metrics.json keeps them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from medvqa.config.evaluation import EvaluationConfig
from medvqa.data.example import Prediction, Score
from medvqa.evaluation.confidence_summary import of_predictions
from medvqa.evaluation.score import ItemScores, Scored, Summary
from medvqa.tracking.record import read_json, read_lines, write_json, write_lines
from medvqa.tracking.shape import checked

FIELDS = {**Prediction.__annotations__, **ItemScores.__annotations__}
STORED_ROW: Any = TypedDict("STORED_ROW", FIELDS, total=False)  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One phase on one set, as metrics.json keeps it.

    Attributes:
        phase: `zero_shot`, `majority`, `after_` with the stage that has just ended, `blind`, or
            `final`.
        num_cut_answers: Answers that hit `max_new_tokens`.
        protocols: Means by protocol and its own metrics.
    """

    phase: str
    set_name: str
    step: int
    summary: Summary
    num_cut_answers: int
    protocols: Summary = field(default_factory=dict)

    def flat(self) -> dict[str, float]:
        """Return `eval/<set>/<phase>/<group>/<metric>` -> mean, for a tracker."""
        return {
            f"eval/{self.set_name}/{self.phase}/{group}/{metric}": score.mean
            for group, metrics in self.summary.items()
            for metric, score in metrics.items()
        }


def write_evaluation(
    place: Path,
    step: int,
    predictions: Sequence[Prediction],
    scored: Scored,
    config: EvaluationConfig,
    **protocol: Any,
) -> Evaluation:
    """Write the answers and scores of the phase and set that the directory is named by.

    `protocol` adds to what metrics.json says of how the answers came about, or replaces it.
    """
    confidence = of_predictions(predictions, [item.exact_match for item in scored.items])
    result = Evaluation(
        phase=place.parent.name,
        set_name=place.name,
        step=step,
        summary={
            group: {**scores, **(confidence[group].measures() if group in confidence else {})}
            for group, scores in scored.summary.items()
        },
        num_cut_answers=sum(bool(own.cut) for own in predictions),
        protocols=scored.protocols,
    )
    rows = zip(predictions, scored.items, strict=True)
    write_lines(place / "predictions.jsonl", [{**asdict(p), **asdict(item)} for p, item in rows])
    values = {
        "normalizer": config.normalizer.value,
        "numeric_tolerance": config.numeric_tolerance,
        "numeric_tolerance_kind": config.numeric_tolerance_kind.value,
        "max_new_tokens": config.max_new_tokens,
        "scoring": config.scoring.value,
        "bertscore": scored.bertscore,
        **protocol,
        "confidence": {group: own.curves() for group, own in confidence.items()},
    }
    # Written last: its presence says that the evaluation is whole.
    write_json(place / "metrics.json", {**asdict(result), **values})
    return result


def read_evaluation(path: Path) -> Evaluation:
    """Return the evaluation that a metrics.json holds.

    Raises:
        UserError: If it is damaged.
    """
    stored = checked(read_json(path), Evaluation, path)
    summary, protocols = (
        {
            group: {metric: Score(**score) for metric, score in metrics.items()}
            for group, metrics in stored.get(name, {}).items()
        }
        for name in ("summary", "protocols")
    )
    names = ("phase", "set_name", "step", "num_cut_answers")
    values = {name: stored[name] for name in names}
    return Evaluation(summary=summary, protocols=protocols, **values)


def read_answers(path: Path, *required: str) -> list[dict[str, Any]]:
    """Return the rows of a run's predictions.jsonl: answers with their scores.

    Args:
        path: Of the file.
        required: What each row must have; earlier versions lack some values.

    Raises:
        UserError: Naming the line, if one is damaged.
    """
    return read_lines(path, STORED_ROW, required)


def read_evaluations(directory: Path) -> list[Evaluation]:
    """Return all evaluations of a run: the baselines, then the stages in order, then the final."""
    evaluations = [read_evaluation(p) for p in directory.glob("evaluation/*/*/metrics.json")]
    return sorted(evaluations, key=lambda e: (e.set_name, phase_place(e.phase, e.step)))


def phase_place(phase: str, step: int) -> tuple[int, int]:
    """Return what sorts phases: baselines, the end of each stage by its step, blind, final."""
    return {"majority": 0, "zero_shot": 1, "blind": 3, "final": 4}.get(phase, 2), step
