"""Pretraining of a base from scratch learns, and stops in time."""

from tools.base_model import SHAPES, build_model
from tools.base_training import pretrain
from tools.pretraining_texts import pretraining_examples


def test_pretraining_learns_and_stops_in_time(encoder, tmp_path, caplog):
    texts = list(pretraining_examples(4, seed=0))
    model = build_model(encoder.processor.tokenizer, SHAPES["tiny"], seed=0)
    options = {"batch_size": 4, "learning_rate": 1e-3, "seed": 0, "device": "cpu"}
    first = pretrain(model, encoder, texts, num_steps=2, **options)
    assert pretrain(model, encoder, texts, num_steps=20, **options) < first - 1
    pretrain(model, encoder, texts, num_steps=10**4, max_seconds=0.5, **options)
    assert "of 10000 steps" in caplog.text
