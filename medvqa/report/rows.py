"""Study -> flat rows, one a number, as the CSV files, comparisons.json and the page have them."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medvqa.report.arms import Arm
from medvqa.report.pairs import Comparison
from medvqa.report.runs import Run
from medvqa.report.study import Result, Study
from medvqa.tracking.record import write_json, write_text

Row = dict[str, Any]


def result_row(result: Result, unequal: Mapping[str, str]) -> Row:
    """Return one line of results.csv."""
    mean = result.mean
    return {
        "set": result.set_name,
        "model": result.arm.model,
        "ordering": result.arm.ordering,
        "rest": result.arm.rest,
        "arm": result.arm.name,
        "phase": result.phase,
        "group": result.group,
        "metric": result.metric,
        "mean": mean.score.mean,
        "low": mean.score.low,
        "high": mean.score.high,
        "num_questions": mean.score.num_examples,
        "num_pictures": mean.num_clusters,
        "num_seeds": mean.num_seeds,
        "interval_over": mean.variance_of,
        "unequal": unequal.get(result.arm.name, ""),
        "seeds": ";".join(str(run.seed) for run in result.runs),
        "run_means": ";".join(map(repr, result.by_run)),
        "runs": ";".join(str(run.directory) for run in result.runs),
    }


def comparison_row(comparison: Comparison) -> Row:
    """Return one line of comparisons.csv."""
    tests = comparison.tests
    crossed, effect = tests.crossed, tests.effect
    return {
        "set": comparison.set_name,
        "group": comparison.group,
        "metric": comparison.metric,
        "model": comparison.common_row,
        "a": comparison.a.name,
        "b": comparison.b.name,
        "difference": crossed.difference.mean,
        "low": crossed.difference.low,
        "high": crossed.difference.high,
        "interval_over": crossed.variance_of,
        "p": crossed.p_value,
        "p_holm": comparison.p_holm,
        "family_size": comparison.family_size,
        "detectable_difference": comparison.detectable,
        "degrees_of_freedom": crossed.degrees_of_freedom,
        "bootstrap_low": crossed.by_bootstrap.low,
        "bootstrap_high": crossed.by_bootstrap.high,
        "permutation_p": tests.permutation.p_value,
        "permutation_p_holm": comparison.permutation_p_holm,
        "mcnemar_only_a": ";".join(str(test.only_a) for test in tests.mcnemar),
        "mcnemar_only_b": ";".join(str(test.only_b) for test in tests.mcnemar),
        "mcnemar_mid_p": ";".join(repr(test.mid_p_value) for test in tests.mcnemar),
        "cohens_dz": effect.cohens_dz,
        "cohens_h": effect.cohens_h,
        "odds_ratio": effect.odds_ratio,
        "num_questions": crossed.difference.num_examples,
        "num_pictures": crossed.num_clusters,
        "num_seeds_a": crossed.num_seeds[0],
        "num_seeds_b": crossed.num_seeds[1],
        "unequal": "; ".join(comparison.unequal),
    }


def run_row(run: Run, arm: Arm | None) -> Row:
    """Return one line of runs.csv; what a run did not get to is empty."""
    values = run.values
    training, git = values.get("training", {}), values.get("git", {})
    seconds = values.get("seconds", {})
    config = values.get("config", {})
    return {
        "directory": str(run.directory),
        "arm": arm.name if arm else "",
        "seed": config.get("seed"),
        "state": run.state,
        "error": run.error,
        "overrides": " ".join(run.overrides),
        "num_steps": values.get("plan", {}).get("num_steps"),
        "final_loss": training.get("final_loss"),
        "average_loss": training.get("average_loss"),
        # Stages are evaluated inside the training phase, so that phases overlap.
        "seconds_load": seconds.get("load"),
        "seconds_train": seconds.get("train_and_evaluate_stages"),
        "seconds_evaluate": seconds.get("evaluate"),
        "peak_memory_bytes": values.get("peak_memory_bytes"),
        "peak_gpu_bytes": values.get("peak_gpu_bytes"),
        "run_id": values.get("run_id"),
        "commit": git.get("commit"),
        "dirty": git.get("dirty"),
        "order_sha256": values.get("plan", {}).get("order_sha256"),
    }


def unequal_arms(study: Study) -> dict[str, str]:
    """Return why an arm is no fair partner of another, by the arm's name."""
    reasons: dict[str, dict[str, None]] = {}
    for comparison in study.comparisons:
        for arm, other in (
            (comparison.a, comparison.b),
            (comparison.b, comparison.a),
        ):
            for reason in comparison.unequal:
                reasons.setdefault(arm.name, {})[f"against {other.name}: {reason}"] = None
    return {name: "; ".join(texts) for name, texts in reasons.items()}


def result_rows(study: Study) -> list[Row]:
    """Return all lines of results.csv."""
    unequal = unequal_arms(study)
    return [result_row(result, unequal) for result in study.results]


def run_rows(study: Study) -> list[Row]:
    """Return all lines of runs.csv."""
    arms = {run.directory: arm for arm in study.arms for run in arm.runs}
    return [run_row(run, arms.get(run.directory)) for run in study.runs]


def write_rows(study: Study, out: Path) -> None:
    """Write results.csv, comparisons.csv, comparisons.json and runs.csv."""
    write_csv(out / "results.csv", result_rows(study))
    comparisons = [comparison_row(c) for c in study.comparisons]
    write_csv(out / "comparisons.csv", comparisons)
    write_csv(out / "runs.csv", run_rows(study))
    write_json(
        out / "comparisons.json",
        {
            "within": list(study.within),
            "comparisons": [
                {**row, "tests": asdict(c.tests)}
                for row, c in zip(comparisons, study.comparisons, strict=True)
            ],
        },
    )


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows that share their keys; floats in full."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    write_text(path, text.getvalue())
