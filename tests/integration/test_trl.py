"""Training through TRL: whole runs, killed and continued."""

import pytest

from medvqa.config.curriculum import CurriculumConfig, Filter, Merge, StageConfig
from medvqa.config.errors import DivergenceError
from medvqa.config.lora import LoraConfig
from medvqa.config.training import Optimizer, Schedule, TrainerName, TrainingConfig
from medvqa.curriculum import plan_curriculum
from medvqa.models.encode import Encoder
from medvqa.models.load import load_model
from medvqa.tracking.record import read_lines
from medvqa.training.loop import Trainer
from medvqa.training.sft import SftTrainer
from tests.conftest import TINY


@pytest.fixture
def make_tiny():
    def make():
        lora = LoraConfig(r=4, alpha=8)
        loaded = load_model(TINY, lora, gradient_checkpointing=False, seed=0)
        return loaded, Encoder(loaded.processor, max_length_tokens=512)

    return make


NUM_STEPS = 4


def config(**changes) -> TrainingConfig:
    values = dict(
        max_steps=NUM_STEPS,
        micro_batch_size=2,
        accumulation_steps=2,
        learning_rate=1e-2,
        warmup_steps=1,
        schedule=Schedule.linear,
        optimizer=Optimizer.adamw,
        checkpoint_every=10,
    )
    return TrainingConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def plan(phantoms):
    stages = [
        StageConfig(name="open", filter=Filter.open, share=0.5),
        StageConfig(name="closed", filter=Filter.closed, share=0.5),
    ]
    curriculum = CurriculumConfig(name="open_first", stages=stages, merge=Merge.sequence)
    return plan_curriculum(curriculum, phantoms, max_steps=NUM_STEPS, batch_size=4, seed=0)


def train(trainer, plan, phantoms, on_step=lambda row: None):
    ends = []
    result = trainer.train(
        plan,
        {example.id: example for example in phantoms},
        on_step=on_step,
        on_stage_end=lambda stage, step: ends.append((stage.name, step)),
    )
    return result, ends


def test_trl_takes_the_planned_order_and_gives_the_losses_of_our_own_loop(
    make_tiny, plan, phantoms, tmp_path
):
    """TRL also covers the line break that the chat template writes after the end of turn."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for place, kind in ((ours, Trainer), (theirs, SftTrainer)):
        place.mkdir()
        loaded, encoder = make_tiny()
        name = TrainerName.trl if kind is SftTrainer else TrainerName.medvqa
        result, ends = train(
            kind(loaded, encoder, config(trainer=name), directory=place, seed=0), plan, phantoms
        )
        assert ends == [("open", 2), ("closed", 4)]
        assert result.consumed_sha256 == plan.sha256
    rows, expected = read_lines(theirs / "metrics.jsonl"), read_lines(ours / "metrics.jsonl")
    assert [row["learning_rate"] for row in rows] == [row["learning_rate"] for row in expected]
    extra = [
        a["num_answer_tokens"] - b["num_answer_tokens"] for a, b in zip(rows, expected, strict=True)
    ]
    assert extra == [4, 4, 4, 4]
    assert read_lines(theirs / "order.jsonl") == read_lines(ours / "order.jsonl")
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_a_killed_run_continues_from_trl_s_checkpoint(make_tiny, plan, phantoms, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for place in (whole, killed):
        place.mkdir()

    def trainer(place):
        loaded, encoder = make_tiny()
        changed = config(trainer=TrainerName.trl, checkpoint_every=1)
        return SftTrainer(loaded, encoder, changed, directory=place, seed=0)

    train(trainer(whole), plan, phantoms)

    def kill(row):
        if row["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(trainer(killed), plan, phantoms, kill)
    result, ends = train(trainer(killed), plan, phantoms)
    assert result.resumed_from_step == 2
    assert ends == [("open", 2), ("closed", 4)]
    losses = [[row["loss"] for row in read_lines(p / "metrics.jsonl")] for p in (whole, killed)]
    assert losses[0] == losses[1]


def test_the_first_loss_that_is_not_finite_stops_trl_too(make_tiny, plan, phantoms, tmp_path):
    loaded, encoder = make_tiny()
    wild = config(trainer=TrainerName.trl, learning_rate=1e30, max_grad_norm=1e30)
    trainer = SftTrainer(loaded, encoder, wild, directory=tmp_path, seed=0)
    with pytest.raises(DivergenceError, match=r"diverged: .* in step \d at learning rate"):
        train(trainer, plan, phantoms)
    assert not any(tmp_path.glob("checkpoints/checkpoint-4"))
