"""Training passes of equal shapes: filled up with a sequence of their own, replayed on a GPU."""

from dataclasses import replace

import pytest
import torch

from medvqa.config.lora import LoraConfig
from medvqa.config.model import Device, Dtype
from medvqa.config.training import Engine
from medvqa.fast.choice import make_engine
from medvqa.fast.graphs import MAX_TOKENS, length_bound, padded_length
from medvqa.models.encode import Encoder
from medvqa.models.load import load_model
from tests.conftest import TINY

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


def with_adapter(config, **lora):
    loaded = load_model(
        config, LoraConfig(r=4, alpha=8, **lora), gradient_checkpointing=False, seed=0
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in loaded.trainable:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
            parameter.data = parameter.data.to(loaded.dtype)
    loaded.use_for(training=True)
    return loaded


def loss_and_gradients(engine, loaded, samples):
    loss = engine.loss(samples, sum(len(sample.answer_ids) for sample in samples))
    loss.backward()
    gradients = [parameter.grad.clone() for _, parameter in loaded.trainable]
    for _, parameter in loaded.trainable:
        parameter.grad = None
    return loss.item(), gradients


def test_a_sequence_that_fills_a_batch_changes_neither_loss_nor_gradients(encoder, phantoms):
    loaded = with_adapter(TINY)
    samples = [encoder.encode(example) for example in phantoms[:3]]
    engine = make_engine(Engine.fused, loaded, encoder)
    loss, gradients = loss_and_gradients(engine, loaded, samples)
    engine.decoder.pads = True
    padded_loss, padded_gradients = loss_and_gradients(engine, loaded, samples)
    assert padded_loss == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(padded_gradients, gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("num_tokens", [1, 127, 128, 1160, 2304, 4095, MAX_TOKENS])
def test_a_batch_grows_by_at_least_a_token_and_little_more_than_a_tile(num_tokens):
    length = padded_length(num_tokens)
    assert 0 < length - num_tokens <= max(128, num_tokens / 16)
    assert length % 128 == 0


def test_few_bounds_of_the_longest_sequence_occur():
    lengths = range(1, MAX_TOKENS + 1)
    assert all(length_bound(length) >= length for length in lengths)
    assert len(set(map(length_bound, lengths))) <= 6
    assert length_bound(92) == length_bound(311)  # VQA-RAD's shortest and longest


def test_a_pass_takes_a_length_that_occurred_before_if_it_is_little_longer():
    assert padded_length(2200) == 2304
    assert padded_length(2100) == 2176
    assert padded_length(2100, {2304, 4096}) == 2304
    assert padded_length(2000, {2304}) == 2048


def test_with_little_memory_shorter_passes_are_filled_up_to_the_one_length(encoder, phantoms):
    loaded = with_adapter(TINY)
    batches = [[encoder.encode(e) for e in phantoms[:size]] for size in (3, 8, 5, 2)]
    engine = make_engine(Engine.fused, loaded, encoder)
    expected = [loss_and_gradients(engine, loaded, batch) for batch in batches]
    decoder = engine.decoder
    decoder.pads = True  # as on a GPU
    assert decoder.keep_one_length()
    assert not decoder.keep_one_length()
    for batch, (loss, gradients) in zip(batches, expected, strict=True):
        padded_loss, padded_gradients = loss_and_gradients(engine, loaded, batch)
        assert padded_loss == pytest.approx(loss, rel=1e-6)
        torch.testing.assert_close(padded_gradients, gradients, rtol=1e-4, atol=1e-6)
    num_tokens = [sum(sample.num_tokens for sample in batch) for batch in batches]
    lengths = [number + decoder.num_added_tokens(number) for number in num_tokens]
    assert lengths == [padded_length(max(num_tokens))] * 4
    engine.release_memory()  # as before smaller micro-batches
    assert decoder.num_added_tokens(100) == padded_length(100) - 100


@needs_gpu
def test_two_lengths_share_one_graph_where_memory_is_scarce(phantoms, family_on_gpu):
    loaded, encoder = family_on_gpu(Engine.fused)
    engine = make_engine(Engine.fused, loaded, encoder)
    batches = [[encoder.encode(e) for e in phantoms[:size]] for size in (8, 3)]
    eager = [loss_and_gradients(engine, loaded, batch) for batch in batches]
    engine.decoder.keep_one_length()
    engine.release_memory()
    for _ in range(3):
        replayed = [loss_and_gradients(engine, loaded, batch) for batch in batches]
    assert len(engine.decoder.graphs) == 1
    for (loss, gradients), (other_loss, other_gradients) in zip(eager, replayed, strict=True):
        assert other_loss == pytest.approx(loss, rel=1e-3)
        torch.testing.assert_close(other_gradients, gradients, rtol=0.02, atol=1e-3)


@needs_gpu
@pytest.mark.parametrize("engine_name", [Engine.fused, Engine.plain])
def test_a_replayed_pass_gives_the_eager_pass_s_loss_and_gradients(
    phantoms, engine_name, family_on_gpu
):
    loaded, encoder = family_on_gpu(engine_name)
    engine = make_engine(engine_name, loaded, encoder)
    graphs = engine.decoder.graphs if engine_name is Engine.fused else engine._language_model.graphs
    batches = [[encoder.encode(e) for e in phantoms[n : n + 4]] for n in (0, 4, 8, 12)]
    eager = [loss_and_gradients(engine, loaded, batch) for batch in batches]
    graphs.forget()
    for _ in range(3):
        replayed = [loss_and_gradients(engine, loaded, batch) for batch in batches]
    assert len(graphs) >= 1
    for (loss, gradients), (other_loss, other_gradients) in zip(eager, replayed, strict=True):
        assert other_loss == pytest.approx(loss, rel=1e-3)
        torch.testing.assert_close(other_gradients, gradients, rtol=0.02, atol=1e-3)


@needs_gpu
def test_two_passes_without_a_collection_between_them_add_up(phantoms, family_on_gpu):
    loaded, encoder = family_on_gpu(Engine.fused)
    engine = make_engine(Engine.fused, loaded, encoder)
    samples = [encoder.encode(example) for example in phantoms[:4]]
    for _ in range(4):
        _, once = loss_and_gradients(engine, loaded, samples)
    assert len(engine.decoder.graphs) == 1
    for _ in range(2):
        engine.loss(samples, sum(len(sample.answer_ids) for sample in samples)).backward()
    twice = [parameter.grad for _, parameter in loaded.trainable]
    torch.testing.assert_close(twice, [2 * gradient for gradient in once], rtol=0.02, atol=1e-3)


@needs_gpu
def test_an_adapter_with_dropout_is_not_captured(phantoms):
    loaded = with_adapter(replace(TINY, device=Device.cuda, dtype=Dtype.bfloat16), dropout=0.1)
    encoder = Encoder(loaded.processor, max_length_tokens=2048, pixel_dtype=loaded.dtype)
    engine = make_engine(Engine.fused, loaded, encoder)
    samples = [encoder.encode(example) for example in phantoms[:4]]
    for _ in range(4):
        loss_and_gradients(engine, loaded, samples)
    assert len(engine.decoder.graphs) == 0


@pytest.fixture
def family_on_gpu(tmp_path, shared):
    """Return a model that the fused engine computes, or one that it does not, on a GPU."""

    def load(engine):
        config = replace(TINY, device=Device.cuda, dtype=Dtype.bfloat16)
        if engine is Engine.plain:
            from tests.tiny_models import save_tiny

            save_tiny("gemma3", tmp_path, shared)
            config = replace(config, path=str(tmp_path), max_pixels=None)
        loaded = with_adapter(config)
        encoder = Encoder(loaded.processor, max_length_tokens=2048, pixel_dtype=loaded.dtype)
        return loaded, encoder

    return load
