"""The answers to a probe, as a run's files keep them -> the measures of the probe."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from medvqa.data.example import Score
from medvqa.evaluation.comparison import arm_mean, run_mean
from medvqa.tracking.record import read_lines

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


class ProbedRow(TypedDict):
    """What the measures take from a line of a probe's predictions.jsonl."""

    id: str
    cluster: str
    falsehood: str
    affirms: bool | None
    changed: bool | None
    exact_match: bool
    normal_exact_match: bool | None


def read_probed(place: Path) -> list[dict[str, Any]]:
    """Return the answers of a probe on one set.

    Raises:
        UserError: Naming the line, if one is damaged.
    """
    return read_lines(place / "predictions.jsonl", ProbedRow)


def probe_scores(runs: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Score]:
    """Return the mean of each measure that applies, over the questions that all runs were asked."""
    scores = {}
    clusters = {row["id"]: row["cluster"] for row in runs[0]}
    for name in MEASURES:
        by_id = [{row["id"]: value for row in rows if (value := measured(row, name)) is not None}
                 for rows in runs]  # fmt: skip
        ids = [key for key in by_id[0] if all(key in own for own in by_id)]
        values = [[float(own[key]) for key in ids] for own in by_id]
        pictures = [clusters[key] for key in ids]
        if len(set(pictures)) > 1:
            scores[name] = arm_mean(values, pictures, bounds=(0, 1)).score
        elif ids and len(runs) == 1:
            scores[name] = run_mean(values[0], pictures)
    return scores


def measured(row: Mapping[str, Any], name: str) -> bool | None:
    """Return what a row says on a measure; None if it does not apply to the question."""
    value: bool | None = row["affirms"] if name.startswith("affirms") else row[name]
    return value if name in row or name == f"affirms_{row['falsehood']}" else None
