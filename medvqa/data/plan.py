"""The plan of a run: its stages and the ids that each consumes."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from medvqa.config.curriculum import LearningRatePolicy, OptimizerPolicy

MAX_LEVELS_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """One stage with its examples in the order of use.

    Attributes:
        example_ids: `num_steps` x batch size ids; an id comes again once all have been seen.
        first_step: 0-based optimiser step at which the stage begins.
        num_available: Different examples that the stage may draw from.
        levels: Different examples of each stated difficulty; empty where none is stated.
    """

    name: str
    example_ids: tuple[str, ...]
    num_steps: int
    first_step: int
    num_available: int
    learning_rate: LearningRatePolicy
    optimizer: OptimizerPolicy
    levels: Mapping[float, int] = field(default_factory=dict)

    @property
    def num_distinct(self) -> int:
        """Different examples that the stage consumes."""
        return len(set(self.example_ids))

    @property
    def resets_optimizer(self) -> bool:
        """Whether the moments are forgotten before its first step."""
        return self.first_step > 0 and self.optimizer is OptimizerPolicy.reset

    @property
    def epochs(self) -> float:
        """Passes over what is available."""
        return len(self.example_ids) / self.num_available

    def describe(self) -> dict[str, Any]:
        """Return what the stage consumes, for run.json."""
        names = ("name", "num_steps", "num_distinct", "num_available")
        return {
            **{name: getattr(self, name) for name in names},
            "num_examples": len(self.example_ids),
            "learning_rate": self.learning_rate.name,
            "optimizer": self.optimizer.name,
            **({"levels": {f"{k:g}": n for k, n in self.levels.items()}} if self.levels else {}),
        }

    def __str__(self) -> str:
        levels = ", ".join(f"{n:,} of level {level:g}" for level, n in self.levels.items())
        # A field with a value per example has no levels to list.
        suffix = f" with {levels}" if 0 < len(self.levels) <= MAX_LEVELS_SHOWN else ""
        return f"{self.name} {self.num_steps} steps{suffix}"


@dataclass(frozen=True)
class Plan:
    """All stages of a run."""

    stages: tuple[PlannedStage, ...]

    # Kept, because the training loop asks for it at every step.
    @cached_property
    def order(self) -> tuple[str, ...]:
        """Every id in the order of use."""
        return tuple(name for stage in self.stages for name in stage.example_ids)

    def step_ids(self, step: int, batch_size: int) -> Sequence[str]:
        """Return the ids of a 0-based step."""
        return self.order[step * batch_size : (step + 1) * batch_size]

    @cached_property
    def sha256(self) -> str:
        """Hash of the order: equal hashes mean the same examples in the same order."""
        return order_sha256(self.order)

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return sum(stage.num_steps for stage in self.stages)

    @cached_property
    def stage_ends(self) -> dict[int, PlannedStage]:
        """Each stage by the number of steps done when it ends."""
        return {stage.first_step + stage.num_steps: stage for stage in self.stages}

    def stage_at(self, step: int) -> PlannedStage:
        """Return the stage of a 0-based step."""
        for end, stage in self.stage_ends.items():
            if step < end:
                return stage
        raise ValueError(f"step {step} is past the plan's {self.num_steps} steps")

    def describe(self) -> dict[str, Any]:
        """Return what each stage consumes, and the hash of the order, for run.json."""
        return {
            "num_steps": self.num_steps,
            "order_sha256": self.sha256,
            "stages": [stage.describe() for stage in self.stages],
        }


def order_sha256(ids: Sequence[str]) -> str:
    """Return the SHA-256 of the ids, one per line."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()
