"""Runs that differ in the seed alone -> arms, with names that say what tells them apart."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medvqa.config.identity import flat, results_only
from medvqa.report.runs import Run
from medvqa.tracking.record import DIVERGED, FINISHED

# Same base: only arms that agree in these are ever compared.
MODEL_KEYS = ("model.name", "model.path", "model.revision", "model.load_in_4bit")
# What tells no arm from another: no answer depends on it, or the arm's label says it.
UNTOLD = ("seed", "only_evaluate", *(f"evaluation.{name}" for name in (
    "blind", "zero_shot", "after_each_stage", "bootstrap_samples", "batch_size",
    "probes", "rephrasings")))  # fmt: skip
# What a run that only evaluates never uses.
TRAINING_KEYS = ("training.", "lora.", "curriculum.", "contamination.", "data.training")
BY_NAMESAKES = ("curriculum.", "adapter")  # an arm's own label says them but for namesakes
LONGEST_VALUE = 40


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train.

    Attributes:
        model: Name of the base; a row of the grid, together with `rest`.
        ordering: Name of the curriculum; a column of the grid.
        rest: What else of the config tells it from arms of the same model and ordering.
        runs: Finished ones, one per seed, by seed.
        diverged: Runs that ended with a loss or gradient that is no number.
    """

    model: str
    ordering: str
    rest: str
    runs: tuple[Run, ...]
    diverged: tuple[Run, ...] = ()

    @property
    def row(self) -> str:
        """Name of the grid's row."""
        return f"{self.model} {self.rest}".strip()

    @property
    def name(self) -> str:
        """Unique in the report."""
        return f"{self.model} / {self.ordering} {self.rest}".strip()

    @property
    def config(self) -> Mapping[str, Any]:
        """The config that all runs share but for the seed."""
        return (*self.runs, *self.diverged)[0].config

    @property
    def divergence(self) -> str:
        """`k of n diverged`; empty where all runs stayed finite."""
        num_runs = len(self.runs) + len(self.diverged)
        return f"{len(self.diverged)} of {num_runs} diverged" if self.diverged else ""


def read_arms(runs: Sequence[Run]) -> tuple[list[Arm], list[str]]:
    """Return the arms in the runs' order, and notes on runs left out."""
    groups: dict[str, dict[int, Run]] = defaultdict(dict)
    notes = []
    for run in runs:
        if run.state not in (FINISHED, DIVERGED):
            continue
        same = groups[json.dumps(_told(run.config), sort_keys=True)]
        first = same.setdefault(run.seed, run)
        if first is not run:
            # The same seed gives the same run: counted twice it would feign certainty.
            relation = "repeats" if _answered_alike(run, first) else "differs from"
            notes.append(f"{run.directory} {relation} {first.directory}: not counted again")
    members = [[by_seed[seed] for seed in sorted(by_seed)] for by_seed in groups.values()]
    rests = _rests([same[0].config for same in members])
    arms = [
        Arm(
            model=model_label(same[0].config),
            ordering=ordering_label(same[0].config),
            rest=rest,
            runs=tuple(run for run in same if run.is_finished),
            diverged=tuple(run for run in same if not run.is_finished),
        )
        for same, rest in zip(members, rests, strict=True)
    ]
    return arms, notes


def _answered_alike(one: Run, other: Run) -> bool:
    final = [
        {(a.set_name, q.id): text for a in run.answers if a.phase == "final"
         for q, text in zip(a.questions, a.texts, strict=True)}
        for run in (one, other)
    ]  # fmt: skip
    return one.state == other.state and final[0] == final[1]


def _told(config: Mapping[str, Any]) -> dict[str, str]:
    """Return what may tell an arm from others, by dotted key."""
    unused = TRAINING_KEYS if config.get("only_evaluate") else ()
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in flat(results_only(config))
        if key not in UNTOLD and not key.startswith(unused)
    }


def model_label(config: Mapping[str, Any]) -> str:
    """Return the base's name without its organisation, or the name of a served model."""
    if config.get("endpoint"):
        return str(config["model_name"]).rpartition("/")[2]
    model = config["model"]
    name = str(model["name"]).rpartition("/")[2]
    return f"{name} 4-bit" if model["load_in_4bit"] and "4bit" not in name else name


def ordering_label(config: Mapping[str, Any]) -> str:
    """Return the curriculum's name, or what a run that only evaluates has evaluated."""
    if not config.get("only_evaluate"):
        return str(config["curriculum"]["name"])
    if config.get("endpoint"):
        return "served"
    return "saved adapter" if config.get("adapter") else "untrained"


def _rests(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what tells each config from the others that share its model and ordering labels."""
    labels = [(model_label(config), ordering_label(config)) for config in configs]
    told = list(zip(labels, map(_told, configs), strict=True))
    return [_written(_telling(_differing(label, own, told)), own) for label, own in told]


def _differing(
    label: tuple[str, str],
    own: Mapping[str, str],
    told: Sequence[tuple[tuple[str, str], Mapping[str, str]]],
) -> list[str]:
    """Return the keys in which a config differs from others of its model.

    Curriculum and adapter come last. All orderings of a model are looked at, so that the
    rows of a grid are named one way. Orderings differ in their stages anyway, and only namesakes
    need telling apart.
    """
    kin = [other for name, other in told if name[0] == label[0]]
    namesakes = [other for name, other in told if name == label]

    def differs(key: str) -> bool:
        others = namesakes if key.startswith(BY_NAMESAKES) else kin
        return any(other.get(key, own[key]) != own[key] for other in others)

    return sorted(filter(differs, own), key=lambda key: key.startswith(BY_NAMESAKES))


def _written(keys: Sequence[str], values: Mapping[str, str]) -> str:
    """Return `key=value, ...`, each key by its last part where that is no other's."""
    lasts = [key.rpartition(".")[2] for key in keys]
    return ", ".join(
        f"{last if lasts.count(last) == 1 and last != 'name' else key}={_short(values[key])}"
        for key, last in zip(keys, lasts, strict=True)
    )


def _telling(keys: Sequence[str]) -> list[str]:
    """Leave out what a group's own name already says: another data set has another path."""
    named = [key.removesuffix("name") for key in keys if key.endswith(".name")]
    return [
        key
        for key in keys
        if not any(key.startswith(group) and key != f"{group}name" for group in named)
    ]


def _short(value: str) -> str:
    if len(value) <= LONGEST_VALUE:
        return value
    # Two long values may begin alike, and an arm's name is its identity.
    return f"{value[:LONGEST_VALUE]}...{hashlib.sha256(value.encode()).hexdigest()[:6]}"


def subtree(config: Mapping[str, Any], key: str) -> str:
    """Return what the config says at a dotted key, as text; "" where it says nothing."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return ""
        value = value[part]
    return json.dumps(value, sort_keys=True)
