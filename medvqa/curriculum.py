"""Examples -> stages -> the order in which ids are consumed; pure and seeded."""

import hashlib
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum
from fractions import Fraction
from typing import TypeVar

from medvqa.config.curriculum import CurriculumConfig, Filter, StageConfig
from medvqa.config.errors import UserError
from medvqa.data.example import Example
from medvqa.data.ordering import FILTERS, MERGES, ORDERS
from medvqa.data.plan import Plan, PlannedStage

Choice = TypeVar("Choice", bound=Enum)
Function = TypeVar("Function")
MAX_EXAMPLES = 10**8  # consumed in all; the ids of a plan are held in memory


def plan_curriculum(
    config: CurriculumConfig,
    examples: Sequence[Example],
    *,
    max_steps: int,
    batch_size: int,
    seed: int,
) -> Plan:
    """Return which example is consumed when.

    A stage's choice depends on the seed and the stage's name alone. So `open_first`,
    `closed_first` and the control `mixed` consume the same examples.

    Args:
        config: Stages and how they are merged.
        examples: The training pool.
        max_steps: Optimiser steps that the stages' shares divide; not used with steps or epochs.
        batch_size: Effective batch: examples per optimiser step.
        seed: Of the run.

    Raises:
        UserError: If a stage matches no example, asks for more than exist, or gets no step.
    """
    pools = stage_pools(config, examples, seed=seed)
    lengths = _stage_steps(config, pools, max_steps=max_steps, batch_size=batch_size)
    draws = []
    for stage, pool, num_steps in zip(config.stages, pools, lengths, strict=True):
        order = _function(ORDERS, stage.order, f"curriculum stage {stage.name!r}: order")
        draws.append(order(pool, num_steps * batch_size, _generator(seed, stage.name, "order")))
    merge = _function(MERGES, config.merge, "curriculum.merge")
    merged = merge(draws, _generator(seed, "merge"))
    if merged is None:
        return _plan(config.stages, draws, pools, lengths)
    whole = [example for pool in pools for example in pool]
    only = replace(config.stages[0], name=config.name)
    return _plan([only], [merged], [whole], [sum(lengths)])


def _plan(
    stages: Sequence[StageConfig],
    draws: Sequence[Sequence[Example]],
    pools: Sequence[Sequence[Example]],
    lengths: Sequence[int],
) -> Plan:
    """Return the plan of stages whose examples have been drawn from their pools."""
    return Plan(
        tuple(
            PlannedStage(
                name=stage.name,
                example_ids=tuple(example.id for example in draw),
                num_steps=num_steps,
                first_step=sum(lengths[:number]),
                num_available=len({example.id for example in pool}),
                learning_rate=stage.learning_rate,
                optimizer=stage.optimizer,
                levels=_levels(draw),
            )
            for number, (stage, draw, pool, num_steps) in enumerate(
                zip(stages, draws, pools, lengths, strict=True)
            )
        )
    )


def _levels(examples: Sequence[Example]) -> dict[float, int]:
    stated = {e.id: e.difficulty for e in examples if e.difficulty is not None}
    return dict(sorted(Counter(stated.values()).items()))


def _generator(seed: int, *names: str) -> random.Random:
    digest = hashlib.sha256(":".join((str(seed), *names)).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def stage_pools(
    config: CurriculumConfig, examples: Sequence[Example], *, seed: int
) -> list[list[Example]]:
    """Return the examples that each stage may draw from; see `plan_curriculum` for errors."""
    return [_stage_pool(stage, examples, seed) for stage in config.stages]


def _stage_pool(stage: StageConfig, examples: Sequence[Example], seed: int) -> list[Example]:
    kind = stage.filter
    pool = _function(FILTERS, kind, f"curriculum stage {stage.name!r}: filter")(examples)
    if not pool:
        counts = Counter(example.answer_type for example in examples)
        raise UserError(
            f"curriculum stage {stage.name!r} wants {kind.value} examples, but the pool has "
            f"{counts['open']} open and {counts['closed']} closed"
        )
    if stage.levels is not None:
        pool = _of_levels(stage, pool)
    if stage.quota is None:
        return pool
    if stage.quota > len(pool):
        only = "" if kind is Filter.all else f" {kind.value}"
        raise UserError(
            f"curriculum stage {stage.name!r}: quota={stage.quota}, but the pool has only "
            f"{len(pool)}{only} examples; lower the quota or choose another data="
        )
    chosen = _generator(seed, stage.name, "quota").sample(range(len(pool)), stage.quota)
    return [pool[i] for i in sorted(chosen)]


def _of_levels(stage: StageConfig, pool: Sequence[Example]) -> list[Example]:
    levels = stage.levels or []
    chosen = [example for example in pool if example.difficulty in levels]
    if chosen:
        return chosen
    levels_of_pool = ", ".join(f"{level:g}" for level in _levels(pool)) or "none"
    raise UserError(
        f"curriculum stage {stage.name!r} wants examples of level "
        f"{', '.join(f'{level:g}' for level in levels)}; the pool states {levels_of_pool:.80} "
        "(data.difficulty= names the column)"
    )


def _stage_steps(
    config: CurriculumConfig,
    pools: Sequence[Sequence[Example]],
    *,
    max_steps: int,
    batch_size: int,
) -> list[int]:
    shares = {stage.name: stage.share for stage in config.stages if stage.share is not None}
    if shares:
        lengths = _split(max_steps, shares)
    else:
        lengths = [
            stage.steps or math.ceil(_exact(stage.epochs or 0) * len(pool) / batch_size)
            for stage, pool in zip(config.stages, pools, strict=True)
        ]
    if sum(lengths) * batch_size > MAX_EXAMPLES:
        raise UserError(
            f"the plan has {sum(lengths):,} steps of {batch_size:,} examples, more than "
            f"{MAX_EXAMPLES:,} examples in all; lower steps, epochs or the effective batch"
        )
    return lengths


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


def _function(table: Mapping[Choice, Function], choice: Choice, key: str) -> Function:
    """Return the function of a choice; a choice without one must not run as another."""
    if choice not in table:
        known = ", ".join(known.name for known in table)
        raise UserError(
            f"{key}={choice.name} has no function in medvqa.data.ordering; it has {known}"
        )
    return table[choice]
