"""Pretraining of a base from scratch learns, and stops in time."""

from tools import build_base as base
from tools.build_base import SHAPES, build_model
from tools.pretraining_texts import pretraining_examples


def test_pretraining_learns_and_stops_in_time(encoder, tmp_path, caplog):
    texts = list(pretraining_examples(4, seed=0))
    model = build_model(encoder.processor.tokenizer, SHAPES["tiny"], seed=0)
    options = {"batch_size": 4, "learning_rate": 1e-3, "seed": 0, "device": "cpu"}
    first = base.pretrain(model, encoder, texts, num_steps=2, **options)
    assert base.pretrain(model, encoder, texts, num_steps=30, **options) < first - 1
    base.pretrain(model, encoder, texts, num_steps=10**4, max_seconds=0.5, **options)
    assert "of 10000 steps" in caplog.text
