"""FP8 copies of the frozen weights: little error, gradients of the same direction, refusals."""

import dataclasses

import pytest
import torch

from medvqa.config.errors import UserError
from medvqa.config.evaluation import Decoding
from medvqa.config.model import BasePrecision
from medvqa.config.training import Engine
from medvqa.fast import fp8
from medvqa.fast.choice import choose_path
from medvqa.fast.engine import FusedEngine
from medvqa.models.load import load_base, load_model
from tests.conftest import TINY
from tests.unit.config.test_compose import config_of
from tests.unit.fast.test_engine import LoraConfig, num_answer_tokens, take_gradients, with_adapter

FP8 = BasePrecision.fp8


@pytest.fixture
def samples(encoder, phantoms):
    return [encoder.encode(example) for example in phantoms[:4]]


def loaded_model(**changes):
    lora = LoraConfig(r=4, alpha=8)
    loaded = with_adapter(load_model(TINY, lora, gradient_checkpointing=False, seed=0))
    return dataclasses.replace(loaded, **changes)


def test_a_row_s_largest_number_is_exact_and_the_others_are_within_a_sixteenth():
    torch.manual_seed(0)
    x = torch.randn(5, 64) * torch.tensor([[1e-3], [1.0], [1e3], [0.0], [7.0]])
    rows = fp8.quantize_rows(x)
    restored = rows.values.float() * rows.scales
    assert rows.values.dtype is torch.float8_e4m3fn and torch.isfinite(restored).all()
    largest = x.abs().argmax(dim=1, keepdim=True)
    torch.testing.assert_close(restored.gather(1, largest), x.gather(1, largest))
    # Three bits of mantissa; numbers below 2^-6 of the scale's unit lose more.
    bound = x.abs() / 16 + rows.scales * 2**-9
    assert ((restored - x).abs() <= bound).all()


def test_products_and_their_gradients_use_the_same_weight():
    torch.manual_seed(0)
    weights = [torch.randn(48, 64), torch.randn(16, 64)]
    weight, whole = fp8.Fp8Weight(weights), torch.cat(weights)
    x, grad = torch.randn(9, 64), torch.randn(9, 64)
    for result, expected in (
        (weight.product(x), x @ whole.t()),
        (weight.pull_back(grad), grad @ whole),
    ):
        assert 0 < (result - expected).norm() / expected.norm() < 0.05


def test_the_engine_in_8_bits_has_nearly_the_loss_and_the_gradients_of_the_base(samples):
    losses, gradients = [], []
    for precision in (BasePrecision.dtype, FP8):
        loaded = loaded_model(base_precision=precision)
        loss = FusedEngine(loaded).loss(samples, num_answer_tokens(samples))
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([g.flatten() for g in take_gradients(loaded).values()]))
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.05)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.95


def test_the_weights_in_16_bits_are_given_up_and_who_still_uses_them_sees_nan(encoder, samples):
    loaded = loaded_model(base_precision=FP8)
    numbers = loaded.describe()["num_parameters"]
    engine = FusedEngine(loaded)
    assert loaded.describe()["num_parameters"] == numbers
    base = loaded.inner.model.language_model.layers[0].mlp.up_proj.base_layer
    assert base.weight.untyped_storage().nbytes() < 16
    batch = encoder.training_batch(samples)
    assert torch.isnan(loaded.model(**batch).loss)
    with torch.inference_mode():
        answers = engine.answer(samples, 4)
    assert answers.tokens.shape[0] == len(samples)


def test_fp8_is_refused_where_it_cannot_compute(tiny):
    with pytest.raises(UserError, match=r"needs an NVIDIA GPU of the Hopper .* this is a CPU; use"):
        load_base(dataclasses.replace(TINY, base_precision=FP8))
    other = dataclasses.replace(tiny, base_precision=FP8)
    with pytest.raises(UserError, match=r"^model.base_precision=fp8 is computed by the fused"):
        choose_path(other, Engine.auto, Decoding.plain)


@pytest.mark.parametrize(
    "setting",
    [
        *("model.load_in_4bit=true", "model.device=cpu", "model.backend=unsloth"),
        *("training.engine=plain", "training.trainer=trl", "evaluation.decoding=plain"),
    ],
)
def test_fp8_and_a_setting_that_contradicts_it_are_an_error_in_one_line(setting):
    with pytest.raises(ValueError, match=rf"base_precision=fp8 .*{setting}") as error:
        config_of("model=qwen3_vl_8b", "model.base_precision=fp8", setting)
    assert "\n" not in str(error.value)


def test_auto_never_chooses_fp8():
    assert config_of("model=qwen3_vl_8b").model.base_precision is BasePrecision.dtype
