"""The fast engine computes what the plain one does: loss, every gradient, cached features."""

import dataclasses
from functools import partial

import numpy as np
import peft
import pytest
import torch
import transformers

from medvqa.config.evaluation import Decoding
from medvqa.config.lora import LoraConfig
from medvqa.evaluation.generate import generate
from medvqa.fast import pictures, projection
from medvqa.fast.choice import FAMILIES
from medvqa.fast.engine import FusedEngine
from medvqa.fast.packing import rotary_positions
from medvqa.models.adapter import target_pattern
from medvqa.models.encode import Encoder
from medvqa.models.load import load_base, load_model
from medvqa.models.patches import PictureCache
from tests.conftest import TINY, PngImage

TOKEN_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def with_adapter(loaded):
    """An adapter that does something, so that its gradients are not zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in loaded.trainable:
            parameter.normal_(std=0.05, generator=generator)
    loaded.use_for(training=True)
    return loaded


@pytest.fixture
def trained():
    lora = LoraConfig(r=4, alpha=8)
    return with_adapter(load_model(TINY, lora, gradient_checkpointing=False, seed=0))


TEXT = {
    **dict(hidden_size=96, intermediate_size=192, num_hidden_layers=2),
    **dict(num_attention_heads=4, num_key_value_heads=2),
    # Wide enough, or it says the same to every question.
    **dict(initializer_range=0.3, bos_token_id=None),
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 4, 4]},
}
VISION = {
    "Qwen2VL": {"embed_dim": 64, "depth": 2, "num_heads": 4, "hidden_size": 96},
    # Windows of 2 x 2 merged patches, which pictures of odd sizes cut; the second layer sees all.
    "Qwen2_5_VL": {"hidden_size": 64, "intermediate_size": 96, "depth": 3, "num_heads": 4,
                   "out_hidden_size": 96, "window_size": 64, "fullatt_block_indexes": [1]},
}  # fmt: skip


@pytest.fixture(params=VISION)
def family(request, tmp_path):
    """A random model of a few layers: biases in attention, no norm of heads, another tower."""
    base = load_base(TINY)
    tokenizer, images = base.processor.tokenizer, base.processor.image_processor
    ids = {name: getattr(base.model.config, name) for name in TOKEN_IDS}
    config = getattr(transformers, f"{request.param}Config")(
        text_config={**TEXT, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id},
        vision_config={**VISION[request.param], "patch_size": images.patch_size},
        tie_word_embeddings=True,
        **ids,
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{request.param}ForConditionalGeneration")(config)
    with torch.no_grad():  # transformers begins with biases of zero, which would hide a mistake
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.5)
    model.save_pretrained(tmp_path)
    processor = getattr(transformers, f"{request.param}Processor")(
        image_processor=images,
        tokenizer=tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(),
        chat_template=base.processor.chat_template,
    )
    processor.save_pretrained(tmp_path)
    return dataclasses.replace(TINY, name=request.param, path=str(tmp_path))


def take_gradients(loaded):
    gradients = {name: parameter.grad.clone() for name, parameter in loaded.trainable}
    for _, parameter in loaded.trainable:
        parameter.grad = None
    return gradients


@pytest.fixture
def samples(encoder, phantoms):
    return [encoder.encode(example) for example in [*phantoms[:4], *about_several(phantoms)]]


def about_several(phantoms):
    """Questions about more than one picture."""
    return [example for example in phantoms if len(example.images) > 1][:2]


@pytest.fixture
def wide(phantoms):
    """A question about a picture of another size than the phantoms'."""
    picture = PngImage("wide.png", np.full((64, 128, 3), 90, dtype=np.uint8))
    return dataclasses.replace(phantoms[0], images=(picture,), image_ids=("wide",))


def num_answer_tokens(samples):
    return sum(len(sample.answer_ids) for sample in samples)


def plain_loss(loaded, encoder, samples):
    batch = encoder.training_batch(samples)
    return loaded.model(**batch, num_items_in_batch=num_answer_tokens(samples)).loss


def packed_loss(loaded, samples):
    return FusedEngine(loaded).loss(samples, num_answer_tokens(samples))


def assert_equal_gradients(loaded, expected):
    for name, gradient in take_gradients(loaded).items():
        assert gradient.abs().max() > 0
        assert (gradient - expected[name]).norm() < 1e-4 * expected[name].norm(), name


def assert_computes_as_plain(loaded, encoder, samples):
    plain = plain_loss(loaded, encoder, samples)
    plain.backward()
    expected = take_gradients(loaded)
    fast = packed_loss(loaded, samples)
    fast.backward()
    assert fast.item() == pytest.approx(plain.item(), rel=1e-6)
    assert_equal_gradients(loaded, expected)


@pytest.mark.parametrize(
    ("targets", "checkpointing"),
    [
        (LoraConfig().target_modules, False),
        (["k_proj", "up_proj"], False),
        (LoraConfig().target_modules, True),
    ],
)
def test_loss_and_every_gradient_equal_the_plain_model_s(encoder, samples, targets, checkpointing):
    lora = LoraConfig(r=4, alpha=8, target_modules=targets)
    trained = with_adapter(load_model(TINY, lora, gradient_checkpointing=checkpointing, seed=0))
    assert_computes_as_plain(trained, encoder, samples)


def test_positions_are_the_model_s_own(trained, encoder, phantoms):
    examples = sorted(phantoms, key=lambda example: -len(example.images))[:3] + phantoms[:2]
    assert len(examples[0].images) > 1
    for sample in map(encoder.encode, examples):
        row = sample.prompt_ids + sample.answer_ids
        ids = torch.tensor([row])
        expected, _ = trained.inner.model.get_rope_index(
            ids,
            mm_token_type_ids=(ids == encoder.image_token_id).long(),
            image_grid_thw=sample.image_grid_thw,
        )
        found = rotary_positions(
            row,
            sample.image_grid_thw.tolist(),
            image_token_id=encoder.image_token_id,
            merge_size=encoder.processor.image_processor.merge_size,
        )
        assert found.tolist() == expected[:, 0].tolist()


def test_a_trained_vision_tower_gets_the_plain_model_s_gradients(encoder, samples):
    lora = LoraConfig(r=4, alpha=8, vision_layers=True)
    trained = with_adapter(load_model(TINY, lora, gradient_checkpointing=False, seed=0))
    plain_loss(trained, encoder, samples).backward()
    expected = take_gradients(trained)
    assert any(".visual." in name for name in expected)
    packed_loss(trained, samples).backward()
    assert_equal_gradients(trained, expected)


def test_a_disabled_adapter_does_nothing(trained, encoder, samples):
    with trained.adapter_disabled():
        plain = plain_loss(trained, encoder, samples).item()
        off = packed_loss(trained, samples).item()
    on = packed_loss(trained, samples).item()
    assert off == pytest.approx(plain, rel=1e-6)
    assert abs(on - off) > 1e-3


def test_dropout_drops_by_the_seed(encoder, samples):
    lora = LoraConfig(r=4, alpha=8, dropout=0.5)
    loaded = load_model(TINY, lora, gradient_checkpointing=False, seed=0)
    with torch.no_grad():
        for _, parameter in loaded.trainable:
            parameter.fill_(0.05)
    loaded.use_for(training=True)
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(packed_loss(loaded, samples).item())
    assert losses[0] == losses[1] != losses[2]


def test_gradients_go_through_the_masks_of_dropout(encoder, samples):
    """Against the slope of the loss along each adapter matrix, measured with the same masks."""
    lora = LoraConfig(r=4, alpha=8, dropout=0.3, target_modules=["q_proj", "k_proj", "down_proj"])
    loaded = with_adapter(load_model(TINY, lora, gradient_checkpointing=False, seed=0))
    loaded.model.double()

    def loss():
        torch.manual_seed(3)
        return packed_loss(loaded, samples[:2])

    loss().backward()
    step = 1e-3  # the loss itself is summed in float32
    for name, gradient in list(take_gradients(loaded).items())[::5]:
        parameter = dict(loaded.trainable)[name]
        direction = torch.randn_like(parameter)
        values = []
        with torch.no_grad():
            for sign in (1, -2):
                parameter += sign * step * direction
                values.append(loss().item())
            parameter += step * direction
        slope = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx((gradient * direction).sum().item(), rel=2e-2, abs=1e-3), name


def test_features_of_a_picture_are_computed_once_and_are_the_same(
    trained, encoder, samples, monkeypatch
):
    expected = packed_loss(trained, samples).item()
    cache = trained.features
    monkeypatch.setattr(pictures, "keeps_features", lambda loaded: True)
    for _ in range(2):
        assert packed_loss(trained, samples).item() == pytest.approx(expected, rel=1e-5)
    keys = [key for sample in samples for key in sample.image_keys]
    assert cache.num_added == len(set(keys)) < len(keys)


def test_each_supported_family_computes_as_its_plain_model(family, phantoms, wide):
    lora = LoraConfig(r=4, alpha=8)
    loaded = with_adapter(load_model(family, lora, gradient_checkpointing=False, seed=0))
    assert loaded.family in FAMILIES and "deepstack" not in str(loaded.inner.config)
    encoder = Encoder(loaded.processor, max_length_tokens=512)
    asked = [*phantoms[:6], wide, *about_several(phantoms)]
    samples = [encoder.encode(example) for example in asked]
    assert_same_features(loaded, samples)
    assert_computes_as_plain(loaded, encoder, samples)
    answers = [
        generate(loaded, encoder, asked, max_new_tokens=8, batch_size=5, decoding=decoding)
        for decoding in (Decoding.plain, Decoding.shared_prefix)
    ]
    assert answers[0] == answers[1]
    assert len({own.text for own in answers[0]}) > 1


def test_each_family_s_trained_tower_gets_the_plain_model_s_gradients(family, phantoms, wide):
    lora = LoraConfig(r=4, alpha=8, vision_layers=True)
    loaded = with_adapter(load_model(family, lora, gradient_checkpointing=True, seed=0))
    encoder = Encoder(loaded.processor, max_length_tokens=512)
    samples = [encoder.encode(example) for example in [phantoms[0], wide]]
    assert any(".visual." in name for name, _ in loaded.trainable)
    assert_computes_as_plain(loaded, encoder, samples)


def test_the_tower_computes_what_the_model_s_own_does(trained, encoder, wide, samples):
    assert_same_features(trained, [samples[0], encoder.encode(wide), *samples[1:]])


assert_close = partial(torch.testing.assert_close, rtol=1e-3, atol=1e-4)


def assert_same_features(loaded, samples):
    grid = torch.cat([sample.image_grid_thw for sample in samples])
    pixels = torch.cat([sample.pixel_values for sample in samples])
    assert len(grid.unique(dim=0)) > 1, "pictures of one size would hide a mistake"
    with torch.no_grad():
        own = loaded.inner.model.visual(pixels, grid_thw=grid, return_dict=True)
        features = pictures.Pictures(loaded)
        for _ in range(2):  # the second time, grids are known
            last, *middle = features.features(samples)
            assert_close(last, own.pooler_output)
            for layer, expected in zip(middle, getattr(own, "deepstack_features", ()), strict=True):
                assert_close(layer, expected)


def test_a_full_cache_forgets_the_oldest_picture(trained, encoder, samples, monkeypatch):
    expected = packed_loss(trained, samples).item()
    cache = PictureCache(max_bytes=1)
    monkeypatch.setattr(pictures, "keeps_features", lambda loaded: True)
    object.__setattr__(trained, "features", cache)
    for _ in range(2):
        assert packed_loss(trained, samples).item() == pytest.approx(expected, rel=1e-5)
    first, last = samples[0], samples[-1]
    assert not set(first.image_keys) & set(last.image_keys)
    num_before = cache.num_added
    packed_loss(trained, [first])
    packed_loss(trained, [last])
    packed_loss(trained, [first])
    assert cache.num_added >= num_before + 2


@pytest.mark.bitsandbytes
def test_four_bits_are_unpacked_as_the_library_does(encoder, samples):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="NF4 is NOT checked: no bitsandbytes")
    base = load_base(dataclasses.replace(TINY, load_in_4bit=True))
    adapter = peft.LoraConfig(r=4, target_modules=target_pattern(base.model, LoraConfig()))
    trained = with_adapter(
        dataclasses.replace(base, model=peft.get_peft_model(base.model, adapter), is_adapted=True)
    )
    layer = trained.inner.model.language_model.layers[0].mlp.up_proj.base_layer
    assert layer.weight.quant_state.nested
    expected = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert projection._weight(layer).equal(expected)
    assert layer.weight.quant_state.nested  # the model's own state stays as it was saved
    plain = plain_loss(trained, encoder, samples)
    assert packed_loss(trained, samples).item() == pytest.approx(plain.item(), rel=2e-2)
