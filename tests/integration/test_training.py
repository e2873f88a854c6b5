"""Whole trainings in this process: equal batches, interruptions, both engines, TRL."""

import dataclasses

import pytest
import torch

from medvqa.config.lora import LoraConfig
from medvqa.config.training import Engine
from medvqa.models.load import load_model
from medvqa.tracking.record import read_lines
from tests.conftest import TINY
from tests.unit.training.test_loop import BASE, STAGES, ScarceTrainer, adapter, make_plan, train


@pytest.mark.parametrize("engine", [Engine.fused, Engine.plain])
def test_without_memory_for_one_sample_layers_are_computed_again_for_the_same_steps(
    tiny, encoder, phantoms, tmp_path, engine, monkeypatch
):
    config = dataclasses.replace(BASE, engine=engine, max_steps=3)
    start = adapter(tiny)
    train(tiny, encoder, phantoms[:48], tmp_path / "whole", config=config)
    with torch.no_grad():
        for name, parameter in tiny.trainable:
            parameter.copy_(start[name])

    def recomputes(trainer):
        if engine is Engine.fused:
            return trainer._engine.decoder.recomputes
        return tiny.recomputes

    monkeypatch.setattr(
        ScarceTrainer, "is_scarce", lambda _, own: not recomputes(own), raising=False
    )
    monkeypatch.setattr("tests.unit.training.test_loop.Trainer", ScarceTrainer)
    result = train(tiny, encoder, phantoms[:48], tmp_path / "scarce", config=config)
    assert result.micro_batch_size == config.micro_batch_size
    losses = [
        [row["loss"] for row in read_lines(tmp_path / run / "metrics.jsonl")]
        for run in ("whole", "scarce")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize(("micro", "accumulation"), [(2, 4), (4, 2), (1, 8)])
def test_batches_of_the_same_examples_make_the_same_step(
    tiny, encoder, phantoms, tmp_path, micro, accumulation
):
    examples = phantoms[:48]
    start = adapter(tiny)
    config = dataclasses.replace(BASE, max_steps=3, micro_batch_size=8)
    train(tiny, encoder, examples, tmp_path / "whole", config=config)
    whole = adapter(tiny)
    with torch.no_grad():
        for name, parameter in tiny.trainable:
            parameter.copy_(start[name])
    split = dataclasses.replace(config, micro_batch_size=micro, accumulation_steps=accumulation)
    train(tiny, encoder, examples, tmp_path / "split", config=split)
    losses = [
        [row["loss"] for row in read_lines(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "split")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    # The answers differ in length, so a mean of means would give another first loss.
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-5)
    assert set(whole) == set(adapter(tiny))


def test_the_loss_falls_on_repeated_examples(tiny, encoder, phantoms, tmp_path):
    config = dataclasses.replace(BASE, max_steps=25)
    train(tiny, encoder, phantoms[:4], tmp_path, config=config)
    losses = [row["loss"] for row in read_lines(tmp_path / "metrics.jsonl")]
    assert losses[-1] < 0.3 * losses[0]


def test_an_interrupted_run_goes_on_exactly(encoder, phantoms, tmp_path):
    """With dropout, whose random numbers go on too."""
    lora = LoraConfig(r=4, alpha=8, dropout=0.2)
    tiny = load_model(TINY, lora, gradient_checkpointing=False, seed=0)
    torch.manual_seed(11)  # what a process drew before must not matter
    plan = make_plan(phantoms, curriculum=STAGES)
    start = adapter(tiny)
    train(tiny, encoder, phantoms, tmp_path / "whole", plan=plan)
    whole = adapter(tiny)

    def stop(row):
        if row["step"] == 5:  # in the middle of the second stage, after the checkpoint of step 4
            raise KeyboardInterrupt

    with torch.no_grad():
        for name, parameter in tiny.trainable:
            parameter.copy_(start[name])
    with pytest.raises(KeyboardInterrupt):
        train(tiny, encoder, phantoms, tmp_path / "cut", plan=plan, on_step=stop)
    with torch.no_grad():
        for _, parameter in tiny.trainable:
            parameter.zero_()  # a new process would not have these weights either
    result = train(tiny, encoder, phantoms, tmp_path / "cut", plan=plan)
    assert result.resumed_from_step == 4
    assert result.consumed_sha256 == plan.sha256
    for name in ("metrics.jsonl", "order.jsonl"):
        rows = [read_lines(tmp_path / run / name) for run in ("whole", "cut")]
        for row in (*rows[0], *rows[1]):
            row.pop("seconds", None)
        assert rows[0] == rows[1]
    assert all(torch.equal(whole[name], p) for name, p in tiny.trainable)


def test_engines_train_alike(encoder, phantoms, tmp_path):
    losses = {}
    for engine in (Engine.plain, Engine.fused):
        loaded = load_model(TINY, LoraConfig(r=4), gradient_checkpointing=False, seed=0)
        config = dataclasses.replace(BASE, engine=engine)
        result = train(loaded, encoder, phantoms[:48], tmp_path / engine.value, config=config)
        assert result.engine == engine.value
        rows = read_lines(tmp_path / engine.value / "metrics.jsonl")
        losses[engine] = [row["loss"] for row in rows]
    assert losses[Engine.fused] == pytest.approx(losses[Engine.plain], rel=1e-3)
