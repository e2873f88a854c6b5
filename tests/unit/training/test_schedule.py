"""The learning rate of each step, and a warm-up that fits into the plan."""

import pytest

from medvqa.config.curriculum import LearningRatePolicy, OptimizerPolicy
from medvqa.config.errors import UserError
from medvqa.config.training import Schedule, TrainingConfig
from medvqa.data.plan import Plan, PlannedStage
from medvqa.training.schedule import learning_rate_factor, warmup_steps


def plan_of(*stages: tuple[int, str]) -> Plan:
    """Return a plan of stages with a length and what each does to the learning rate."""
    planned = []
    for number, (num_steps, policy) in enumerate(stages):
        planned.append(
            PlannedStage(
                name=f"stage {number}",
                example_ids=("a",) * num_steps,
                num_steps=num_steps,
                first_step=sum(length for length, _ in stages[:number]),
                num_available=1,
                learning_rate=LearningRatePolicy[policy],
                optimizer=OptimizerPolicy.keep,
            )
        )
    return Plan(tuple(planned))


def two_stages(policy: str) -> Plan:
    return plan_of((5, "continue"), (5, policy))


def factors(made: Plan, *, warmup_steps: int, schedule: Schedule = Schedule.linear) -> list[float]:
    return [
        learning_rate_factor(made, step, warmup_steps=warmup_steps, schedule=schedule)
        for step in range(made.num_steps)
    ]


@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize("warmup_steps", [0, 3])
def test_the_global_schedule_is_that_of_transformers(schedule: Schedule, warmup_steps: int) -> None:
    torch = pytest.importorskip("torch")
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    name = "constant_with_warmup" if schedule is Schedule.constant else schedule.value
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup_steps, num_training_steps=10)
    expected = []
    for _ in range(10):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert factors(
        two_stages("continue"), warmup_steps=warmup_steps, schedule=schedule
    ) == pytest.approx(expected)


def test_continue_ignores_the_boundary() -> None:
    expected = [0, 0.5, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    assert factors(two_stages("continue"), warmup_steps=2) == pytest.approx(expected)


def test_rewarm_ramps_up_to_the_global_schedule() -> None:
    expected = [0, 0.5, 1, 7 / 8, 6 / 8, 0, 4 / 8 / 2, 3 / 8, 2 / 8, 1 / 8]
    assert factors(two_stages("rewarm"), warmup_steps=2) == pytest.approx(expected)


def test_restart_gives_a_stage_a_schedule_of_its_own() -> None:
    expected = [0, 0.5, 1, 7 / 8, 6 / 8, 0, 0.5, 1, 2 / 3, 1 / 3]
    assert factors(two_stages("restart"), warmup_steps=2) == pytest.approx(expected)


def test_rewarm_in_the_first_stage_does_not_warm_up_twice() -> None:
    assert factors(plan_of((10, "rewarm")), warmup_steps=2)[:3] == [0, 0.5, 1]


@pytest.mark.parametrize("num_steps", [40, 50, 60])
def test_a_derived_warm_up_is_five_steps_for_each_published_number_of_steps(num_steps):
    assert warmup_steps(TrainingConfig(), plan_of((num_steps, "continue"))) == 5


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 8, 30, 10_000])
@pytest.mark.parametrize("policy", ["continue", "rewarm", "restart"])
def test_a_derived_warm_up_leaves_most_of_the_shortest_stage_that_warms_up(num_steps, policy):
    plan = plan_of((200, "continue"), (num_steps, policy))
    derived = warmup_steps(TrainingConfig(), plan)
    shortest = plan.num_steps if policy == "continue" else num_steps
    assert 0 <= derived <= shortest / 8


@pytest.mark.parametrize(
    ("stages", "asked", "owner"),
    [
        ([(4, "continue")], 5, "the plan's 4 steps"),
        ([(4, "continue"), (4, "continue")], 9, "the plan's 8 steps"),
        ([(9, "continue"), (4, "restart")], 5, "the 4 steps of stage 'stage 1', which warms up"),
        ([(9, "continue"), (4, "rewarm")], 5, "the 4 steps of stage 'stage 1', which warms up"),
        ([(1, "continue")], 1, "the plan's 1 steps"),
    ],
)
def test_a_warm_up_that_does_not_fit_is_refused_with_its_numbers(stages, asked, owner):
    with pytest.raises(UserError, match=f"warmup_steps={asked} is too long for {owner}"):
        warmup_steps(TrainingConfig(warmup_steps=asked), plan_of(*stages))


@pytest.mark.parametrize("asked", [0, 1, 4])
def test_any_warm_up_that_fits_is_a_choice(asked):
    assert warmup_steps(TrainingConfig(warmup_steps=asked), plan_of((4, "continue"))) == asked
