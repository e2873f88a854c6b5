"""The fast engine computes what the plain one does: loss, every gradient, cached features."""

import pytest
import torch

from medvqa import engine
from medvqa.config import LoraConfig
from medvqa.model import load_model
from tests.conftest import TINY


@pytest.fixture
def trained():
    """A model whose adapter does something, so that its gradients are not zero."""
    lora = LoraConfig(rank=4, alpha=8)
    loaded = load_model(TINY, lora, gradient_checkpointing=False, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in loaded.trainable:
            parameter.normal_(std=0.05, generator=generator)
    loaded.use_for(training=True)
    return loaded


def take_gradients(loaded):
    gradients = {name: parameter.grad.clone() for name, parameter in loaded.trainable}
    for _, parameter in loaded.trainable:
        parameter.grad = None
    return gradients


@pytest.fixture
def batch(encoder, phantoms):
    several = [example for example in phantoms if len(example.images) > 1][:2]
    samples = [encoder.encode(example) for example in [*phantoms[:4], *several]]
    return encoder.training_batch(samples), sum(len(sample.answer_ids) for sample in samples)


def test_loss_and_every_gradient_equal_the_plain_model_s(trained, batch):
    tensors, num_answer_tokens = batch
    plain = trained.model(**tensors, num_items_in_batch=num_answer_tokens).loss
    plain.backward()
    expected = take_gradients(trained)
    assert "lora" in engine.accelerate(trained)
    fast = engine.answer_loss(trained, tensors, num_answer_tokens)
    fast.backward()
    assert fast.item() == pytest.approx(plain.item(), rel=1e-6)
    for name, gradient in take_gradients(trained).items():
        assert gradient.abs().max() > 0
        assert torch.allclose(gradient, expected[name], rtol=1e-3, atol=1e-6), name


def test_the_fast_linear_obeys_a_disabled_adapter(trained, batch):
    tensors, num_answer_tokens = batch
    with trained.adapter_disabled():
        plain = trained.model(**tensors, num_items_in_batch=num_answer_tokens).loss.item()
    engine.accelerate(trained)
    with trained.adapter_disabled():
        off = engine.answer_loss(trained, tensors, num_answer_tokens).item()
    on = engine.answer_loss(trained, tensors, num_answer_tokens).item()
    assert off == pytest.approx(plain, rel=1e-6)
    assert abs(on - off) > 1e-3


def test_dropout_still_drops(batch):
    lora = LoraConfig(rank=4, alpha=8, dropout=0.5)
    loaded = load_model(TINY, lora, gradient_checkpointing=False, seed=0)
    with torch.no_grad():
        for _, parameter in loaded.trainable:
            parameter.fill_(0.05)
    engine.accelerate(loaded)
    loaded.use_for(training=True)
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(engine.answer_loss(loaded, *batch).item())
    assert losses[0] == losses[1] != losses[2]


def test_features_of_a_picture_are_computed_once_and_are_the_same(trained, batch, phantoms):
    tensors, num_answer_tokens = batch
    expected = engine.answer_loss(trained, tensors, num_answer_tokens).item()
    keys = [f"picture {hash(p.numpy().tobytes())}" for p in pictures(tensors)]
    cache = engine.VisionCache(trained, max_bytes=10**8)
    for _ in range(2):
        cache.provide(keys, tensors["pixel_values"], tensors["image_grid_thw"])
        found = engine.answer_loss(trained, tensors, num_answer_tokens).item()
        assert found == pytest.approx(expected, rel=1e-5)
    assert cache.num_computed == len(set(keys)) < len(keys)
    # What nothing was provided for is computed as ever.
    assert engine.answer_loss(trained, tensors, num_answer_tokens).item() == expected


def test_a_full_cache_forgets_the_oldest_picture(trained, batch):
    tensors, num_answer_tokens = batch
    keys = [str(number) for number, _ in enumerate(pictures(tensors))]
    expected = engine.answer_loss(trained, tensors, num_answer_tokens).item()
    cache = engine.VisionCache(trained, max_bytes=1)
    for _ in range(2):
        cache.provide(keys, tensors["pixel_values"], tensors["image_grid_thw"])
        found = engine.answer_loss(trained, tensors, num_answer_tokens).item()
        assert found == pytest.approx(expected, rel=1e-5)
    one = tensors["image_grid_thw"][:1]
    num_before = cache.num_computed
    cache.provide(["new"], pictures(tensors)[0], one)
    cache.provide(keys[:1], pictures(tensors)[0], one)
    assert cache.num_computed == num_before + 2


def pictures(tensors):
    return tensors["pixel_values"].split(tensors["image_grid_thw"].prod(-1).tolist())
