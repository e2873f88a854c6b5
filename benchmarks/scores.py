"""What the runs of a study scored, question by question, and how two arms compare."""

import argparse
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.runs import Row
from medvqa.evaluation.comparison import compare_arms
from medvqa.evaluation.components import Method
from medvqa.tracking.record import read_json

MACHINE = ("python", "platform", "num_cpus", "gpus")
Key = tuple[Any, ...]  # arm, budget or learning rate, phase, metric


@dataclass(frozen=True)
class Selected:
    """The scores of an arm: (seeds, questions); the pictures of the questions; the seeds."""

    scores: list[list[float]]
    clusters: list[str]
    seeds: list[int]


class Scores:
    """The scores of all arms on all sets of questions.

    Args:
        kinds: Type of each question, by set.
        clusters: Picture of each question, by set.
    """

    def __init__(
        self, kinds: Mapping[str, Sequence[str]], clusters: Mapping[str, Iterable[Any]]
    ) -> None:
        self.kinds = {name: list(own) for name, own in sorted(kinds.items())}
        self._clusters = {name: list(map(str, own)) for name, own in clusters.items()}
        self._rows: dict[Key, dict[int, dict[str, list[float]]]] = defaultdict(
            lambda: defaultdict(dict)
        )

    def add(self, key: Key, seed: int, name: str, scores: Iterable[Any]) -> None:
        """Add what one run scored on one set."""
        by_set = self._rows[key][seed]
        if name in by_set:
            raise SystemExit(f"two runs of seed {seed} of {key} have answered {name}")
        by_set[name] = [float(score) for score in scores]

    def seeds(self, key: Key, sets: Iterable[str]) -> list[int]:
        """Return the seeds that have answered all of these sets."""
        rows, names = self._rows.get(key, {}), set(sets)
        return sorted(seed for seed, own in rows.items() if names <= own.keys())

    def of(
        self, arm: str, budget: Any, kind: str, *, metric: str = "exact_match",
        phase: str = "final", sets: Sequence[str] = (),
    ) -> Selected:  # fmt: skip
        """Return an arm's scores on the questions of a kind or `overall`, sets joined."""
        key, names = (arm, budget, phase, metric), sets or list(self.kinds)
        seeds = self.seeds(key, names)

        def joined(by_set: Mapping[str, Sequence[Any]]) -> list[Any]:
            return [
                value
                for name in names
                for value, own in zip(by_set[name], self.kinds[name], strict=True)
                if kind in ("overall", own)
            ]

        rows = [joined(self._rows[key][seed]) for seed in seeds]
        return Selected(rows, joined(self._clusters), seeds)


def compared(a: Selected, b: Selected, *, paired: bool, method: Method = "by_component") -> Row:
    """Return both means and a minus b with its interval and test."""
    result = compare_arms(
        a.scores, b.scores, a.clusters, seeds_are_paired=paired, method=method
    )  # fmt: skip
    return {
        "mean_a": fmean(map(fmean, a.scores)),
        "mean_b": fmean(map(fmean, b.scores)),
        "difference": result.difference.mean,
        "low": result.difference.low,
        "high": result.difference.high,
        "p_value": result.p_value,
        "standard_error": result.standard_error,
        "degrees_of_freedom": result.components[0].degrees_of_freedom,
        "num_questions": len(a.clusters),
        "num_pictures": result.num_clusters,
        "num_seeds": list(result.num_seeds),
    }


def finished_runs(directories: list[Path]) -> tuple[dict[Path, Any], list[str], Row]:
    """Return the finished runs' run.json, the other runs' names, and the last one's machine."""
    paths = sorted(path for directory in directories for path in directory.rglob("run.json"))
    runs = {path.parent: read_json(path) for path in paths}
    finished = {place: run for place, run in runs.items() if run.get("state") == "finished"}
    if not finished:
        raise SystemExit(f"no finished run in {', '.join(map(str, directories))}")
    environment = list(finished.values())[-1]["environment"]
    unfinished = [place.name for place in runs if place not in finished]
    return finished, unfinished, environment


def command_line(description: str | None) -> tuple[argparse.ArgumentParser, Any]:
    """Return a study's command line and its commands `record` and `analyse`."""
    parser = argparse.ArgumentParser(description=description)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, source in (("record", "directories"), ("analyse", "record")):
        command = commands.add_parser(name)
        command.add_argument(source, type=Path, nargs="+" if name == "record" else None)
        command.add_argument("--out", type=Path, required=True)
    return parser, commands
