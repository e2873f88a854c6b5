"""What a run ends with: the table, and results.json, the file that people quote."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvqa.data.example import Example
from medvqa.evaluation.confidence_summary import MEASURES
from medvqa.evaluation.phase_scores import Evaluation, read_evaluations
from medvqa.evaluation.plots import draw_pictures
from medvqa.evaluation.probing import probes_table, read_probes
from medvqa.evaluation.protocols.table import overview_table
from medvqa.evaluation.score import Summary, cell, summary_table
from medvqa.tracking.record import read_json, write_json
from medvqa.tracking.terminal import console, table
from medvqa.tracking.wandb_mirror import Records

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA_VERSION = 1  # of results.json; a change that breaks a reader raises it
INTERVAL = "95 %, Wilson on the effective sample size, clustered by picture"
PROTOCOL = ("normalizer", "numeric_tolerance", "max_new_tokens", "bertscore")


def show_results(evaluations: Sequence[Evaluation], directory: Path) -> None:
    """Print the tables of a run and where its files are."""
    for shown in result_tables(evaluations, directory):
        console().print(shown)
    sys.stdout.write(f"everything is in {directory}\n")


def result_tables(evaluations: Sequence[Evaluation], directory: Path) -> list["Table"]:
    """Return the tables of each set: its scores, other protocols, confidence and probes."""
    probes = read_probes(directory)
    tables = []
    for name in dict.fromkeys(e.set_name for e in evaluations):
        of_set = [e for e in evaluations if e.set_name == name]
        phases = [(e.phase, e.summary) for e in of_set]
        tables.append(summary_table(phases, title=f"{name}: mean [95 % interval]"))
        for evaluation in of_set:
            if evaluation.protocols:
                title = f"{name}, {evaluation.phase}: the same answers by other rules"
                tables.append(overview_table(evaluation.protocols, None, title=title))
        if any("calibration_error" in summary["overall"] for _, summary in phases):
            tables.append(confidence_table(phases, title=f"{name}: confidence, all questions"))
        own = [probe for probe in probes if probe.set_name == name]
        if own:
            tables.append(probes_table(own, f"{name}: hallucination probes of the final model"))
    return tables


def confidence_table(phases: Sequence[tuple[str, Summary]], *, title: str) -> "Table":
    """Return a table with a row per phase: each measure's mean, 95 % interval and n."""
    rows = [
        (phase, *(cell(summary["overall"].get(name)) for name in MEASURES))
        for phase, summary in phases
        if "calibration_error" in summary["overall"]
    ]
    return table(title, ("", *MEASURES.values()), rows)


def headline(evaluations: Sequence[Evaluation], sets: Iterable[str]) -> float | None:
    """Return the final overall exact match on the first set; None where there is no set."""
    first = next(iter(sets), None)
    for evaluation in evaluations:
        if evaluation.phase == "final" and evaluation.set_name == first:
            return evaluation.summary["overall"]["exact_match"].mean
    return None


def record_results(
    directory: Path,
    records: Records,
    final: Sequence[Evaluation],
    sets: Mapping[str, Sequence[Example]],
) -> None:
    """Write results.json and the pictures of what the run's files hold, and mirror both.

    Args:
        directory: Run directory.
        records: run.json and its mirror.
        final: The final evaluations.
        sets: Questions of each evaluation set by name.
    """
    keeper, tracker = records
    keeper.update(
        results={evaluation.set_name: evaluation.flat() for evaluation in final},
        headline=headline(final, sets),
    )
    training = keeper.values["training"]
    losses = {
        f"train/{name}": training[name]
        for name in ("final_loss", "average_loss")
        if training[name] is not None
    }
    tracker.summarize({**losses, **final_values(final)})
    for name, examples in sets.items():
        path = directory / "evaluation" / "final" / name / "predictions.jsonl"
        tracker.log_predictions(name, path, examples)
    evaluations = read_evaluations(directory)
    write_results(directory, evaluations, keeper.values)
    config = keeper.values["config"]
    if config["tracking"].get("pictures", True):  # a record of earlier versions lacks the key
        with keeper.phase("pictures"):
            pictures = draw_pictures(directory, evaluations, sets, seed=config["seed"])
        tracker.log_pictures(pictures, step=training["num_steps"])


def write_results(
    directory: Path, evaluations: Sequence[Evaluation], values: Mapping[str, Any]
) -> None:
    """Write results.json: every mean with interval and n; docs/records.md names its fields.

    Args:
        directory: Run directory.
        evaluations: All of the run.
        values: What run.json holds so far.
    """
    config = values["config"]
    protocols = {}
    for name in dict.fromkeys(evaluation.set_name for evaluation in evaluations):
        stored = read_json(directory / "evaluation" / "final" / name / "metrics.json")
        protocols[name] = {key: stored[key] for key in PROTOCOL}
    results = {
        "schema_version": SCHEMA_VERSION,
        "run_id": values["run_id"],
        "run": directory.name,
        "choices": _choices(config),
        "overrides": values["overrides"],
        "seed": config["seed"],
        "budget": _budget(config, values["plan"]),
        "order_sha256": values["plan"]["order_sha256"],
        "data": {
            name: {key: pool[key] for key in ("num_examples", "num_images", "sha256")}
            for name, pool in values["data"].items()
        },
        "contamination": values.get("contamination"),
        "code": values["git"],
        "packages": values["environment"]["packages"],
        "loss": {name: values["training"][f"{name}_loss"] for name in ("final", "average")},
        "protocol": protocols,
        "headline": values.get("headline"),
        "interval": INTERVAL,
        **_scores(evaluations),
        "probes": [asdict(probe) for probe in read_probes(directory)],
    }
    write_json(directory / "results.json", results)


def _choices(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was chosen; what only training uses is None where nothing was trained."""
    is_trained = not config.get("only_evaluate")
    return {
        "model": config.get("model_name") or config["model"]["name"],
        "load_in_4bit": config["model"]["load_in_4bit"],
        "max_pixels": config["model"]["max_pixels"],
        "data": config["data"]["name"],
        "data_seed": config["data"]["seed"],
        "curriculum": config["curriculum"]["name"] if is_trained else None,
        "lora": config["lora"] if is_trained else None,
        "training": config["training"] if is_trained else None,
        "adapter": config.get("adapter"),
        "endpoint": config.get("endpoint"),
    }


def _budget(config: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, Any]:
    training = config["training"]
    return {
        "num_steps": plan["num_steps"],
        "batch_size": training["micro_batch_size"] * training["accumulation_steps"],
        "num_examples": sum(stage["num_examples"] for stage in plan["stages"]),
        "stages": plan["stages"],
    }


def _scores(evaluations: Sequence[Evaluation]) -> dict[str, list[dict[str, Any]]]:
    """Return one row per set, phase, group and metric, and one per protocol and its metric."""
    return {
        "scores": [
            {"set": e.set_name, "phase": e.phase, "step": e.step, "group": group,
             "metric": metric, **asdict(score)}
            for e in evaluations
            for group, scores in e.summary.items()
            for metric, score in scores.items()
        ],
        "protocols": [
            {"set": e.set_name, "phase": e.phase, "protocol": name, "metric": metric, **asdict(s)}
            for e in evaluations
            for name, scores in e.protocols.items()
            for metric, s in scores.items()
        ],
    }  # fmt: skip


def final_values(evaluations: Sequence[Evaluation]) -> dict[str, float]:
    """Return `final/<set>/<group>/<metric>` with `_low`, `_high` and `_n`, for a tracker."""
    return {
        f"final/{evaluation.set_name}/{group}/{metric}{suffix}": value
        for evaluation in evaluations
        if evaluation.phase == "final"
        for group, scores in evaluation.summary.items()
        for metric, s in scores.items()
        for suffix, value in zip(
            ("", "_low", "_high", "_n"), (s.mean, s.low, s.high, s.num_examples), strict=True
        )
    }
