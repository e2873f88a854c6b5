"""export.json: the record of an exported model, without paths of this machine."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import medvqa
from medvqa.evaluation.calibrate_command import recalibrated
from medvqa.evaluation.phase_scores import Evaluation
from medvqa.export.merging import PLACE
from medvqa.models.trained import Kind, Trained
from medvqa.tracking.environment import now

SCORED = {"final": "adapter", "merged": "merged"}


def export_record(
    trained: Trained,
    kind: Kind,
    evaluations: Sequence[Evaluation],
    merge: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the values of export.json; `scores` has adapter and merged side by side."""
    values, calibration = trained.values, trained.calibration
    contamination = values.get("contamination")
    if kind is Kind.merged:
        calibration = recalibrated(trained.directory / PLACE, calibration, contamination)
    return {
        "kind": kind.value,
        "name": trained.name,
        "medvqa": medvqa.__version__,
        "exported": now(),
        "trained": values["ended"],
        "run_id": values["run_id"],
        "base": {
            "name": trained.model.name,
            "revision": trained.revision,
            "load_in_4bit": trained.model.load_in_4bit,
            **{name: values["model"][name] for name in ("is_quantized", "architecture")},
        },
        "adapter_sha256": trained.adapter_sha256(),
        "calibration": calibration,
        "scores": _scores(evaluations),
        "merge": merge,
        "contamination": contamination,
        # Without the reasons for skipped rows, which quote files and rows.
        "data": {
            name: {key: value for key, value in pool.items() if key != "skipped"}
            for name, pool in values["data"].items()
        },
        **{name: values[name] for name in ("plan", "training")},
        "model": {name: value for name, value in values["model"].items() if name != "source"},
        "config": _config(values["config"]),
        "git": values["git"],
        "environment": {name: values["environment"][name] for name in ("python", "packages")},
    }


def _scores(evaluations: Sequence[Evaluation]) -> dict[str, dict[str, Any]]:
    scores: dict[str, dict[str, Any]] = {}
    for evaluation in evaluations:
        if evaluation.phase in SCORED:
            summary = asdict(evaluation)["summary"]
            scores.setdefault(evaluation.set_name, {})[SCORED[evaluation.phase]] = summary
    return scores


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    evaluation, encoder = config["evaluation"], config["evaluation"]["bertscore"]
    is_path = Path(encoder["model"]).is_absolute()
    model = Path(encoder["model"]).name if is_path else encoder["model"]
    return {
        "model": {**config["model"], "path": None},
        "evaluation": {**evaluation, "bertscore": {**encoder, "model": model}},
        **{name: config[name] for name in ("lora", "curriculum", "training", "seed")},
    }
