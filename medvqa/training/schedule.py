"""The learning rate of each step: warm-up, shape and what the stages say about both."""

import math
from collections.abc import Callable

from medvqa.config.curriculum import LearningRatePolicy
from medvqa.config.errors import UserError
from medvqa.config.training import Schedule, TrainingConfig
from medvqa.data.plan import Plan

# A derived warm-up has a twelfth of the steps. The minimum of five is that of the published recipe,
# which has 40 to 60 steps. At most an eighth of a plan is warm-up.
PART, MIN_STEPS, MAX_PART = 12, 5, 8


def warmup_steps(config: TrainingConfig, plan: Plan) -> int:
    """Return the steps of a warm-up; those of `training.warmup_steps` if it is not null.

    Raises:
        UserError: If it exceeds the plan or a stage that warms up again, or if no step would have
            a learning rate above 0.
    """
    lengths = {f"the plan's {plan.num_steps} steps": plan.num_steps} | {
        f"the {stage.num_steps} steps of stage {stage.name!r}, which warms up again": (
            stage.num_steps
        )
        for stage in plan.stages
        if stage.learning_rate is not LearningRatePolicy["continue"]
    }
    warmup = config.warmup_steps
    if warmup is None:
        return derived_warmup(plan.num_steps, min(lengths.values()))
    for owner, num_steps in lengths.items():
        if warmup > num_steps or warmup == num_steps == 1:
            raise UserError(
                f"training.warmup_steps={warmup} is too long for {owner}; lower it, or say "
                "training.warmup_steps=null to derive it from the plan"
            )
    return warmup


def derived_warmup(num_steps: int, shortest: int) -> int:
    """Return the warm-up of so many steps; `shortest` is the shortest part that warms up."""
    return min(max(MIN_STEPS, num_steps // PART), shortest // MAX_PART)


def learning_rate_of(config: TrainingConfig, plan: Plan) -> Callable[[int], float]:
    """Return a function from a 0-based step to its learning rate."""
    warmup = warmup_steps(config, plan)
    return lambda step: (
        config.learning_rate
        * learning_rate_factor(plan, step, warmup_steps=warmup, schedule=config.schedule)
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
