"""Study -> flat rows, one per number, for the CSV files, comparisons.json and the page."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medvqa.report.confidence import ArmConfidence, ArmProbe
from medvqa.report.pairs import Comparison
from medvqa.report.study import Study
from medvqa.report.verdicts import Verdict
from medvqa.tracking.record import write_csv, write_json

Row = dict[str, Any]
RUN_VALUES = ("peak_memory_bytes", "peak_gpu_bytes", "run_id")


def result_rows(study: Study) -> list[Row]:
    """Return all lines of results.csv."""
    unequal = unequal_arms(study)
    return [
        {
            "set": r.set_name,
            "model": r.arm.model,
            "ordering": r.arm.ordering,
            "rest": r.arm.rest,
            "arm": r.arm.name,
            "phase": r.phase,
            "group": r.group,
            "metric": r.metric,
            "mean": r.mean.score.mean,
            "low": r.mean.score.low,
            "high": r.mean.score.high,
            "num_questions": r.mean.score.num_examples,
            "num_pictures": r.mean.num_clusters,
            "num_seeds": r.mean.num_seeds,
            "interval_over": r.mean.variance_of,
            "unequal": unequal.get(r.arm.name, ""),
            "seeds": ";".join(str(run.seed) for run in r.runs),
            "run_means": ";".join(map(repr, r.by_run)),
            "runs": ";".join(str(run.directory) for run in r.runs),
        }
        for r in study.results
    ]


def comparison_row(c: Comparison) -> Row:
    """Return one line of comparisons.csv."""
    return {
        "set": c.set_name,
        "group": c.group,
        "metric": c.metric,
        "model": c.common_row,
        "a": c.a.name,
        "b": c.b.name,
        "difference": c.crossed.difference.mean,
        "low": c.crossed.difference.low,
        "high": c.crossed.difference.high,
        "interval_over": c.crossed.variance_of,
        "identical": c.are_identical,
        "test": c.crossed.test,
        "paired": "by seed" if c.crossed.is_paired else "no",
        "p": None if c.are_identical else c.crossed.p_value,
        "p_holm": None if c.are_identical else c.p_holm,
        "family_size": c.family_size,
        "detectable_difference": None if c.are_identical else c.detectable,
        "degrees_of_freedom": c.crossed.degrees_of_freedom,
        "permutation_test": "sign flips of pictures, paired by question",
        "permutation_p": None if c.are_identical else c.permutation.p_value,
        "permutation_p_holm": None if c.are_identical else c.permutation_p_holm,
        "mcnemar_test": "McNemar mid-p per seed, paired by question" if c.mcnemar else "",
        "mcnemar_only_a": ";".join(str(test.only_a) for test in c.mcnemar),
        "mcnemar_only_b": ";".join(str(test.only_b) for test in c.mcnemar),
        "mcnemar_mid_p": ";".join(repr(test.mid_p_value) for test in c.mcnemar),
        **asdict(c.effect),
        "num_questions": c.crossed.difference.num_examples,
        "num_pictures": c.crossed.num_clusters,
        "num_seeds_a": c.crossed.num_seeds[0],
        "num_seeds_b": c.crossed.num_seeds[1],
        "seeds_a": ";".join(map(str, c.seeds[0])),
        "seeds_b": ";".join(map(str, c.seeds[1])),
        "left_out": "; ".join(c.left_out),
        "unequal": "; ".join(c.unequal),
    }


def verdict_row(v: Verdict) -> Row:
    """Return one line of verdicts.csv."""
    crossed = v.comparison.crossed if v.comparison else None
    return {
        **{name: value for name, value in vars(v).items() if name != "comparison"},
        "test": crossed.test if crossed else "",
        "paired": ("by seed" if crossed.is_paired else "no") if crossed else "",
        "degrees_of_freedom": crossed.degrees_of_freedom if crossed else "",
    }


def run_rows(study: Study) -> list[Row]:
    """Return all lines of runs.csv; a value that a run did not reach is empty."""
    arms = {run.directory: arm.name for arm in study.arms for run in arm.runs}
    rows = []
    for run in study.runs:
        plan, training, git, seconds, config = (
            run.values.get(name, {}) for name in ("plan", "training", "git", "seconds", "config")
        )
        rows.append(
            {
                "directory": str(run.directory),
                "arm": arms.get(run.directory, ""),
                "seed": config.get("seed"),
                "state": run.state,
                "error": run.error,
                "overrides": " ".join(run.overrides),
                "num_steps": plan.get("num_steps"),
                "final_loss": training.get("final_loss"),
                "average_loss": training.get("average_loss"),
                # Stages are evaluated inside the training phase, so that phases overlap.
                "seconds_load": seconds.get("load"),
                "seconds_train": seconds.get("train_and_evaluate_stages"),
                "seconds_evaluate": seconds.get("evaluate"),
                **{name: run.values.get(name) for name in RUN_VALUES},
                "commit": git.get("commit"),
                "dirty": git.get("dirty"),
                "order_sha256": plan.get("order_sha256"),
            }
        )
    return rows


def confidence_rows(confidence: Sequence[ArmConfidence]) -> list[Row]:
    """Return all lines of confidence.csv."""
    return [
        {**_place(own), "phase": own.phase, "group": own.group, **_score(name, score)}
        for own in confidence
        for name, score in own.measures.items()
    ]


def probe_rows(probes: Sequence[ArmProbe]) -> list[Row]:
    """Return all lines of probes.csv."""
    return [
        {**_place(own), "probe": own.probe, **_score(name, score)}
        for own in probes
        for name, score in own.rates.items()
    ]


def _place(own: ArmConfidence | ArmProbe) -> Row:
    return {"set": own.set_name, "arm": own.arm.name, "num_seeds": own.num_seeds}


def _score(name: str, score: Any) -> Row:
    return {"measure": name, "mean": score.mean, "low": score.low, "high": score.high,
            "num_questions": score.num_examples}  # fmt: skip


def unequal_arms(study: Study) -> dict[str, str]:
    """Return why an arm is no fair partner of another, by the arm's name."""
    reasons: dict[str, dict[str, None]] = {}
    for c in study.comparisons:
        for arm, other in ((c.a, c.b), (c.b, c.a)):
            for reason in c.unequal:
                reasons.setdefault(arm.name, {})[f"against {other.name}: {reason}"] = None
    return {name: "; ".join(texts) for name, texts in reasons.items()}


def write_rows(study: Study, out: Path) -> None:
    """Write results, comparisons, runs and verdicts as CSV, and comparisons.json."""
    comparison_rows = list(map(comparison_row, study.comparisons))
    verdict_rows = list(map(verdict_row, study.verdicts))
    write_csv(out / "results.csv", result_rows(study))
    write_csv(out / "comparisons.csv", comparison_rows)
    write_csv(out / "runs.csv", run_rows(study))
    write_csv(out / "verdicts.csv", verdict_rows)
    comparisons = [
        {
            **row,
            "tests": {
                name: asdict(getattr(c, name)) for name in ("crossed", "effect", "permutation")
            }
            | {"mcnemar": [asdict(test) for test in c.mcnemar]},
        }
        for c, row in zip(study.comparisons, comparison_rows, strict=True)
    ]
    write_json(
        out / "comparisons.json",
        {
            "within": list(study.within),
            "comparisons": comparisons,
            "verdicts": verdict_rows,
            "notes": list(study.notes),
        },
    )
