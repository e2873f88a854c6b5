"""The form of a step is planned by the memory that is free."""

import logging
from dataclasses import replace

import pytest
import torch

from medvqa.config.training import Engine
from medvqa.fast.choice import make_engine
from medvqa.models.adapter import reset_adapter
from medvqa.models.patches import PictureCache
from medvqa.training import loop
from medvqa.training.loop import Trainer
from medvqa.training.step_form import Form, forms, planned_micro_batch, smaller_micro_batch
from tests.unit.training.test_loop import BASE, make_plan


class CountingEngine:
    """A pass of a token takes ten bytes, a quarter of it where layers are computed again."""

    recomputes = False
    keeps_one_length = False

    def pass_bytes(self, num_tokens, *, recomputes):
        return num_tokens * 10 // (4 if recomputes else 1)

    def recompute_layers(self):
        self.recomputes = True

    def release_memory(self):
        pass

    def keep_one_length(self):
        is_new, self.keeps_one_length = not self.keeps_one_length, True
        return is_new


@pytest.mark.parametrize(
    ("room", "micro_batch_size", "recomputes"),
    [
        (10_000, 8, False),
        (7_999, 4, False),  # eight samples of 100 tokens take 8,000
        (3_999, 8, True),  # less than half of the batch: computing layers again is faster
        (1_999, 4, True),
        (499, 1, True),
        (1, 1, True),  # nothing fits; the loop says so
    ],
)
def test_the_fastest_form_that_fits_is_planned(room, micro_batch_size, recomputes):
    engine = CountingEngine()
    assert planned_micro_batch(engine, [100] * 8, room) == micro_batch_size
    assert engine.recomputes is recomputes


def test_passes_of_several_lengths_are_captured_where_two_of_them_fit():
    for room, keeps_one_length in ((16_000, False), (15_999, True)):
        engine = CountingEngine()
        assert planned_micro_batch(engine, [100] * 8, room) == 8
        assert engine.keeps_one_length is keeps_one_length


def test_features_of_pictures_go_first_where_memory_runs_out():
    engine, features = CountingEngine(), PictureCache(max_bytes=1000)
    features.keep("a", torch.ones(8))
    assert smaller_micro_batch(engine, features, 8, 8) == 8
    features.keep("b", torch.ones(8))
    assert features.num_bytes == 0
    assert not engine.keeps_one_length
    assert smaller_micro_batch(engine, features, 8, 8) == 8
    assert engine.keeps_one_length


def test_the_longest_samples_decide():
    assert planned_micro_batch(CountingEngine(), [10, 10, 10, 200], 2_100) == 2
    assert planned_micro_batch(CountingEngine(), [10, 10, 10, 200], 500) == 1


def test_forms_of_an_odd_share_end_with_one_sample():
    assert list(forms(5)) == [
        *(Form(5, False), Form(3, False)),
        *(Form(5, True), Form(3, True), Form(2, True), Form(1, True)),
    ]
    assert list(forms(1)) == [Form(1, False), Form(1, True)]


def test_an_engine_that_knows_no_bytes_takes_all_at_once(tiny, encoder):
    plain = make_engine(Engine.plain, tiny, encoder)
    assert planned_micro_batch(plain, [100] * 8, 1) == 8


def test_the_fused_engine_plans_what_autograd_keeps(tiny, encoder, phantoms):
    """The tensors saved for the backward pass, counted, are those of the plan."""
    engine = make_engine(Engine.fused, tiny, encoder)
    samples = [encoder.encode(example) for example in phantoms[:4]]
    seen, kept = set(), []

    def count(tensor):
        place = tensor.untyped_storage().data_ptr()
        if place not in seen and not isinstance(tensor, torch.nn.Parameter):
            seen.add(place)
            kept.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        engine.loss(samples, 10)
    num_tokens = sum(sample.num_tokens for sample in samples)
    planned = engine.decoder.kept_bytes(num_tokens, recomputes=False)
    assert planned == pytest.approx(sum(kept), rel=0.25)
    assert engine.decoder.kept_bytes(num_tokens, recomputes=True) < planned / 1.5


def test_the_loop_takes_the_planned_form_before_its_first_step(
    tiny, encoder, phantoms, tmp_path, monkeypatch, caplog
):
    """As on a GPU; the losses are those of the whole batch at once."""
    config = replace(BASE, max_steps=2, engine=Engine.fused, micro_batch_size=8,
                     accumulation_steps=1)  # fmt: skip

    def losses(name, room):
        monkeypatch.setattr(loop, "free_bytes", lambda loaded: room)
        place = tmp_path / name
        place.mkdir()
        reset_adapter(tiny.model, seed=0)
        trainer = Trainer(tiny, encoder, config, directory=place, seed=0)
        trainer._plans_form = True
        rows = []
        result = trainer.train(
            make_plan(phantoms[:16], config), {e.id: e for e in phantoms[:16]},
            on_step=rows.append, on_stage_end=lambda *_: None,
        )  # fmt: skip
        return result.micro_batch_size, [row["loss"] for row in rows]

    engine = make_engine(Engine.fused, tiny, encoder)
    tokens = sorted((encoder.encode(e).num_tokens for e in phantoms[:16]), reverse=True)
    enough = engine.pass_bytes(sum(tokens[:8]), recomputes=False)
    size, expected = losses("whole", 2 * enough)
    assert size == 8
    with caplog.at_level(logging.INFO):
        size, ours = losses("planned", enough * 3 // 4)
    assert size == 4
    assert f"GB of GPU memory are free: micro-batches of {size}" in caplog.text
    assert ours == pytest.approx(expected, rel=1e-5)
