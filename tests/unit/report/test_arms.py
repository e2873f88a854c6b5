"""Arms are named by what tells them apart; runs that only evaluate stand beside trained ones."""

from pathlib import Path

from medvqa.config.compose import resolved
from medvqa.report.arms import read_arms
from medvqa.report.matching import Settings, block_of
from medvqa.report.runs import Run
from medvqa.tracking.record import FINISHED
from tests.unit.config.test_compose import composed

EVALUATE = ("only_evaluate=true", "tracking=disabled")


def run(name, *overrides):
    return Run(directory=Path(name), values={"config": resolved(composed(*overrides))},
               state=FINISHED)  # fmt: skip


def names(*runs):
    return [arm.name for arm in read_arms(runs)[0]]


def test_what_only_training_uses_names_no_run_that_only_evaluates():
    trained = ("tracking=disabled", "training.max_steps=7", "lora.r=4")
    assert names(
        run("a", *trained, "curriculum=open_first"),
        run("b", *trained, "curriculum=mixed"),
        run("c", *EVALUATE),
        run("d", *EVALUATE, "adapter=/somewhere/a"),
    ) == ["tiny / open_first", "tiny / mixed", "tiny / untrained", "tiny / saved adapter"]


def test_two_adapters_are_two_arms_and_one_budget_more_is_still_told():
    assert names(
        run("a", *EVALUATE, "adapter=/x/first"),
        run("b", *EVALUATE, "adapter=/x/second"),
        run("c", "tracking=disabled", "training.max_steps=7"),
        run("d", "tracking=disabled", "training.max_steps=9"),
    ) == [
        "tiny / saved adapter adapter=/x/first",
        "tiny / saved adapter adapter=/x/second",
        "tiny / mixed max_steps=7",
        "tiny / mixed max_steps=9",
    ]


def test_a_served_model_has_its_own_name_and_is_not_compared_with_the_config_s_base():
    served = run("a", *EVALUATE, "endpoint=http://localhost:1/v1", "model_name=org/big")
    base = run("b", *EVALUATE)
    arms, _ = read_arms([served, base])
    assert [arm.name for arm in arms] == ["big / served", "tiny / untrained"]
    assert block_of(arms[0], Settings()) != block_of(arms[1], Settings())


def test_runs_that_differ_in_their_number_of_gpus_alone_are_one_arm():
    arms, _ = read_arms([
        run("a", "tracking=disabled", "seed=1"),
        run("b", "tracking=disabled", "seed=2", "training.gpus=2"),
    ])  # fmt: skip
    assert [len(arm.runs) for arm in arms] == [2]
