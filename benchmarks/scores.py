"""What the runs of a study scored, question by question, and how two arms compare."""

import argparse
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from benchmarks.runs import Row
from medvqa.evaluation.comparison import compare_arms
from medvqa.evaluation.components import Method

Key = tuple[Any, ...]  # arm, budget or learning rate, phase, metric


@dataclass(frozen=True)
class Selected:
    """The scores of an arm: (seeds, questions); the pictures of the questions; the seeds."""

    scores: list[list[float]]
    clusters: list[str]
    seeds: list[int]


class Scores:
    """The scores of all arms: one row per question of a set, one column per key and seed.

    Args:
        kinds: Type of each question, by set.
        clusters: Picture of each question, by set.
    """

    def __init__(
        self, kinds: Mapping[str, Sequence[str]], clusters: Mapping[str, Iterable[Any]]
    ) -> None:
        self.questions = pd.concat({
            name: pd.DataFrame({"kind": own, "cluster": list(map(str, clusters[name]))})
            for name, own in sorted(kinds.items())
        })  # fmt: skip
        self._columns: dict[Key, dict[int, pd.Series]] = defaultdict(dict)

    def add(self, key: Key, seed: int, name: str, scores: Iterable[Any]) -> None:
        """Add what one run scored on one set."""
        empty = pd.Series(math.nan, self.questions.index)
        column = self._columns[key].setdefault(seed, empty)
        if not column[name].isna().all():
            raise SystemExit(f"two runs of seed {seed} of {key} have answered {name}")
        column[name] = list(map(float, scores))

    def of(
        self, arm: str, budget: Any, kind: str = "overall", *, metric: str = "exact_match",
        phase: str = "final", sets: Sequence[str] = (),
    ) -> Selected:  # fmt: skip
        """Return the seeds that answered all of the sets, on the questions of a kind."""
        rows = self.questions.loc[list(sets) or slice(None)]
        columns = self._columns.get((arm, budget, phase, metric), {})
        table = pd.DataFrame(columns, rows.index).dropna(axis="columns").sort_index(axis="columns")
        if kind != "overall":
            rows = rows[rows["kind"] == kind]
        scores = table.loc[rows.index].T
        return Selected(scores.to_numpy().tolist(), rows["cluster"].tolist(), scores.index.tolist())


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


def command_line(description: str | None) -> tuple[argparse.ArgumentParser, Any]:
    """Return a study's command line and its commands `record` and `analyse`."""
    parser = argparse.ArgumentParser(description=description)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, source in (("record", "directories"), ("analyse", "record")):
        command = commands.add_parser(name)
        command.add_argument(source, type=Path, nargs="+" if name == "record" else None)
        command.add_argument("--out", type=Path, required=True)
    return parser, commands
