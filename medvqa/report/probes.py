"""Runs of an arm -> rates of its hallucination probes, over all seeds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medvqa.data.example import Score
from medvqa.evaluation.comparison import arm_mean
from medvqa.evaluation.probe_rates import MEASURES, measured
from medvqa.evaluation.probing import probe_place, read_probes
from medvqa.report.arms import Arm
from medvqa.tracking.record import read_lines


@dataclass(frozen=True, kw_only=True)
class ArmProbe:
    """One probe of one arm on one set.

    Attributes:
        num_seeds: Runs that were asked; all of them were.
        reason: Why the probe asked nothing; "" where it did.
        rates: Measure of `MEASURES` -> mean with interval.
    """

    arm: Arm
    set_name: str
    probe: str
    num_seeds: int
    reason: str
    rates: dict[str, Score]


def arm_probes(arms: Sequence[Arm]) -> tuple[list[ArmProbe], list[str]]:
    """Return the probes of all arms, and a note on each that only some of an arm's runs have."""
    probes, notes = [], []
    for arm in arms:
        results = [{(r.set_name, r.probe): r for r in read_probes(run.directory)}
                   for run in arm.runs]  # fmt: skip
        for key in dict.fromkeys(key for own in results for key in own):
            set_name, probe = key
            have = [run for run, own in zip(arm.runs, results, strict=True) if key in own]
            if len(have) < len(arm.runs):
                notes.append(
                    f"{arm.name}: {len(have)} of {len(arm.runs)} runs have the probe {probe} on "
                    f"{set_name}; it is not shown"
                )
                continue
            rows = [read_lines(probe_place(r.directory, probe, set_name) / "predictions.jsonl")
                    for r in have]  # fmt: skip
            probes.append(
                ArmProbe(
                    arm=arm,
                    set_name=set_name,
                    probe=probe,
                    num_seeds=len(have),
                    reason=results[0][key].reason,
                    rates=dict(_rates(rows)),
                )
            )
    return probes, notes


def _rates(runs: Sequence[Sequence[Mapping[str, Any]]]) -> Iterator[tuple[str, Score]]:
    """Yield the measures that apply, over the questions that all runs were asked."""
    for name in MEASURES:
        by_id = [{row["id"]: value for row in rows if (value := measured(row, name)) is not None}
                 for rows in runs]  # fmt: skip
        ids = [key for key in by_id[0] if all(key in own for own in by_id)]
        clusters = {row["id"]: row["cluster"] for row in runs[0]}
        if len({clusters[key] for key in ids}) > 1:
            values = [[float(own[key]) for key in ids] for own in by_id]
            yield name, arm_mean(values, [clusters[key] for key in ids], bounds=(0, 1)).score
