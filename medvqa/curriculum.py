"""Examples -> stages -> the order in which ids are consumed; pure and seeded."""

import hashlib
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from medvqa.config.curriculum import (
    CurriculumConfig,
    Filter,
    LearningRatePolicy,
    Merge,
    OptimizerPolicy,
    Order,
    StageConfig,
)
from medvqa.config.errors import UserError
from medvqa.config.training import Schedule
from medvqa.data.example import Example


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """One stage with its examples in the order of use.

    Attributes:
        example_ids: `num_steps` x batch size ids; an id comes again once all have been seen.
        first_step: 0-based optimiser step at which the stage begins.
        num_available: Different examples that the stage may draw from.
    """

    name: str
    example_ids: tuple[str, ...]
    num_steps: int
    first_step: int
    num_available: int
    learning_rate: LearningRatePolicy
    optimizer: OptimizerPolicy

    @property
    def num_distinct(self) -> int:
        """Different examples that the stage consumes."""
        return len(set(self.example_ids))

    @property
    def epochs(self) -> float:
        """Passes over what is available."""
        return len(self.example_ids) / self.num_available


@dataclass(frozen=True)
class Plan:
    """All stages of a run."""

    stages: tuple[PlannedStage, ...]

    # Kept, because the training loop asks for it at every step.
    @cached_property
    def order(self) -> tuple[str, ...]:
        """Every id in the order of use."""
        return tuple(name for stage in self.stages for name in stage.example_ids)

    @cached_property
    def sha256(self) -> str:
        """Hash of the order: equal hashes mean the same examples in the same order."""
        return order_sha256(self.order)

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return sum(stage.num_steps for stage in self.stages)

    @property
    def num_examples(self) -> int:
        """Examples consumed, each as often as it is used."""
        return len(self.order)

    def stage_at(self, step: int) -> PlannedStage:
        """Return the stage of a 0-based step."""
        for stage in self.stages:
            if step < stage.first_step + stage.num_steps:
                return stage
        raise ValueError(f"step {step} is past the plan's {self.num_steps} steps")


def order_sha256(ids: Sequence[str]) -> str:
    """Return the SHA-256 of the ids, one a line."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def plan_curriculum(
    config: CurriculumConfig,
    examples: Sequence[Example],
    *,
    max_steps: int,
    batch_size: int,
    seed: int,
) -> Plan:
    """Return which example is consumed when.

    A stage's choice depends on the seed and the stage's name alone, so `open_first` and
    `closed_first` consume the same examples, and so does the `mixed` control.

    Args:
        config: Stages and how they are merged.
        examples: The training pool.
        max_steps: Optimiser steps that the stages' shares divide; not used with steps or epochs.
        batch_size: Effective batch: examples an optimiser step.
        seed: Of the run.

    Raises:
        UserError: If a stage finds no example, asks for more than exist, or gets no step.
    """
    pools = [_stage_pool(stage, examples, seed) for stage in config.stages]
    lengths = _stage_steps(config, pools, max_steps=max_steps, batch_size=batch_size)
    stages, first_step = [], 0
    for stage, pool, num_steps in zip(config.stages, pools, lengths, strict=True):
        planned = PlannedStage(
            name=stage.name,
            example_ids=_draw(stage, pool, num_steps * batch_size, seed),
            num_steps=num_steps,
            first_step=first_step,
            num_available=len(pool),
            learning_rate=stage.learning_rate,
            optimizer=stage.optimizer,
        )
        stages.append(planned)
        first_step += num_steps
    if config.merge is Merge.sequence:
        return Plan(tuple(stages))
    return Plan((_merge(config, stages, pools, seed),))


def _generator(seed: int, *names: str) -> random.Random:
    digest = hashlib.sha256(":".join((str(seed), *names)).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def _stage_pool(stage: StageConfig, examples: Sequence[Example], seed: int) -> list[Example]:
    wanted = stage.filter
    pool = [e for e in examples if wanted is Filter.all or e.answer_type == wanted.value]
    if not pool:
        counts = Counter(example.answer_type for example in examples)
        raise UserError(
            f"curriculum stage {stage.name!r} wants {wanted.value} examples, but the pool has "
            f"{counts['open']} open and {counts['closed']} closed"
        )
    if stage.quota is None:
        return pool
    if stage.quota > len(pool):
        kind = "" if wanted is Filter.all else f" {wanted.value}"
        raise UserError(
            f"curriculum stage {stage.name!r}: quota={stage.quota}, but the pool has only "
            f"{len(pool)}{kind} examples; lower the quota or choose another data="
        )
    kept = _generator(seed, stage.name, "quota").sample(range(len(pool)), stage.quota)
    return [pool[i] for i in sorted(kept)]


def _stage_steps(
    config: CurriculumConfig,
    pools: Sequence[Sequence[Example]],
    *,
    max_steps: int,
    batch_size: int,
) -> list[int]:
    shares = {stage.name: stage.share for stage in config.stages if stage.share is not None}
    if shares:
        return _split(max_steps, shares)
    return [
        stage.steps or math.ceil(_exact(stage.epochs or 0) * len(pool) / batch_size)
        for stage, pool in zip(config.stages, pools, strict=True)
    ]


def _exact(value: float) -> Fraction:
    """Return the number as the user wrote it: 1.1 epochs of 50 examples are 55, not 56."""
    return Fraction(str(value))


def _split(max_steps: int, shares: Mapping[str, float]) -> list[int]:
    """Divide the steps by largest remainder, so that they sum up exactly.

    Ties go by name, not by position: open_first and closed_first get the same lengths.
    """
    exact = {name: _exact(share) * max_steps for name, share in shares.items()}
    steps = {name: math.floor(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (steps[name] - exact[name], name))
    for name in by_remainder[: max_steps - sum(steps.values())]:
        steps[name] += 1
    for name, num_steps in steps.items():
        if num_steps == 0:
            raise UserError(
                f"curriculum stage {name!r}: share={shares[name]:g} of training.max_steps="
                f"{max_steps} is less than one step; raise one of them"
            )
    return list(steps.values())


def _draw(
    stage: StageConfig, pool: Sequence[Example], num_examples: int, seed: int
) -> tuple[str, ...]:
    """Return ids pass by pass: no example comes again before all have come.

    A stage shorter than its pool takes the first ones in `dataset` order, else a seeded sample.
    """
    generator = _generator(seed, stage.name, "order")
    drawn: list[Example] = []
    while len(drawn) < num_examples:
        once = list(pool)
        if stage.order is not Order.dataset:
            generator.shuffle(once)
        # The last, partial pass is cut before sorting: easy_first then consumes the same mix of
        # easy and hard examples as a shuffled stage does, in another order.
        drawn += once[: num_examples - len(drawn)]
    if stage.order is Order.easy_first:
        drawn = _easy_first(drawn)
    return tuple(example.id for example in drawn)


def _easy_first(drawn: Sequence[Example]) -> list[Example]:
    """Sort each pass, easiest first; ties keep the order of the first pass, so passes agree."""
    rank: dict[str, int] = {}
    seen: Counter[str] = Counter()
    keys = []
    for position, example in enumerate(drawn):
        rank.setdefault(example.id, position)
        keys.append((seen[example.id], *difficulty(example), rank[example.id]))
        seen[example.id] += 1
    return [drawn[i] for i in sorted(range(len(drawn)), key=keys.__getitem__)]


def difficulty(example: Example) -> tuple[int, int]:
    """Return words of the answer, then of the question: shorter is easier.

    Source of the idea: Bengio et al., Curriculum Learning, ICML 2009; the measure is ours.
    """
    return len(example.answers[0].split()), len(example.question.split())


def _merge(
    config: CurriculumConfig,
    stages: Sequence[PlannedStage],
    pools: Sequence[Sequence[Example]],
    seed: int,
) -> PlannedStage:
    """Return one stage that holds exactly the multiset of examples of the given ones.

    No boundary is left, so the later stages' policies for theirs have nothing to act on.
    """
    by_id = {example.id: example for pool in pools for example in pool}
    ids = [name for stage in stages for name in stage.example_ids]
    if config.merge is Merge.interleave:
        positions = [
            ((i + 0.5) / len(stage.example_ids), number)
            for number, stage in enumerate(stages)
            for i in range(len(stage.example_ids))
        ]
        ids = [ids[i] for i in sorted(range(len(ids)), key=lambda i: positions[i])]
    else:
        _generator(seed, "merge").shuffle(ids)
    if config.merge is Merge.easy_first:
        ids = [example.id for example in _easy_first([by_id[name] for name in ids])]
    return PlannedStage(
        name=config.name,
        example_ids=tuple(ids),
        num_steps=sum(stage.num_steps for stage in stages),
        first_step=0,
        num_available=len(by_id),
        learning_rate=stages[0].learning_rate,
        optimizer=stages[0].optimizer,
    )


def learning_rate_factor(plan: Plan, step: int, *, warmup_steps: int, schedule: Schedule) -> float:
    """Return the part of the peak learning rate at a 0-based step, in [0, 1].

    The convention is that of `transformers.get_linear_schedule_with_warmup`: step s of the
    warm-up has s / warmup_steps, so the very first step has rate 0.
    """
    stage = plan.stage_at(step)
    within = step - stage.first_step
    if stage.learning_rate is LearningRatePolicy["restart"]:
        return _schedule(within, stage.num_steps, warmup_steps, schedule)
    factor = _schedule(step, plan.num_steps, warmup_steps, schedule)
    if stage.learning_rate is LearningRatePolicy["rewarm"] and within < warmup_steps:
        return factor if stage.first_step == 0 else factor * within / warmup_steps
    return factor


def _schedule(step: int, num_steps: int, warmup_steps: int, schedule: Schedule) -> float:
    if step < warmup_steps:
        return step / warmup_steps
    if schedule is Schedule.constant:
        return 1.0
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    if schedule is Schedule.cosine:
        return max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))
    return max(0.0, 1 - progress)
