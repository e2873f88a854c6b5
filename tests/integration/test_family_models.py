"""Each family trains on the answer alone and answers the same in batches of any size."""

import dataclasses

import peft
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from medvqa.config.evaluation import Decoding
from medvqa.config.lora import LoraConfig
from medvqa.config.model import ModelConfig
from medvqa.data.image import load_rgb
from medvqa.evaluation.generate import generate
from medvqa.models.adapter import save_adapter
from medvqa.models.encode import Encoder
from medvqa.models.load import load_model
from medvqa.models.plain import PlainEngine
from medvqa.models.preview import preview
from medvqa.models.prompt import user_message
from medvqa.models.sample import IGNORED
from tests.conftest import SHARED
from tests.tiny_models import FAMILIES, MADE_HERE, save_tiny

LORA = LoraConfig(r=4, alpha=8)


@pytest.fixture(scope="module", params=FAMILIES)
def directory(request, tmp_path_factory):
    if request.param not in MADE_HERE:
        request.getfixturevalue("shared")  # skips where the real files are absent
    place = tmp_path_factory.mktemp(request.param)
    save_tiny(request.param, place, SHARED)
    return place


@pytest.fixture(scope="module")
def config(directory):
    is_qwen = directory.name.startswith("qwen")
    return ModelConfig(
        name="a/tiny",
        path=str(directory),
        max_pixels=56 * 56 if is_qwen else None,
        min_pixels=784 if is_qwen else 4096,
    )


# Nothing here changes the model: one per family serves all tests.


@pytest.fixture(scope="module")
def loaded(config):
    model = load_model(config, LORA, gradient_checkpointing=False, seed=0)
    with torch.no_grad():
        for _, parameter in model.trainable:
            parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(3))
    return model


@pytest.fixture(scope="module")
def encoder(loaded):
    return Encoder(loaded.processor, max_length_tokens=2048)


@pytest.fixture(scope="session")
def examples(phantoms):
    """One and two pictures, questions and answers of different lengths."""
    two = [example for example in phantoms if len(example.images) == 2][:2]
    short = dataclasses.replace(two[1], answers=("no",))
    return [phantoms[0], two[0], phantoms[1], short, phantoms[3], phantoms[4]]


def own_processor(config):
    return AutoProcessor.from_pretrained(config.path)


def test_the_labels_are_the_answer_and_its_end(encoder, examples):
    batch = encoder.training_batch([encoder.encode(example) for example in examples])
    tokenizer = encoder.processor.tokenizer
    end = tokenizer.convert_ids_to_tokens(encoder.end_token_id)
    for example, ids, labels in zip(examples, batch["input_ids"], batch["labels"], strict=True):
        supervised = labels != IGNORED
        assert torch.equal(labels[supervised], ids[supervised])
        assert tokenizer.decode(labels[supervised]).strip() == f"{example.answers[0]}{end}"


def test_the_prompt_is_that_of_the_processors_own_template(loaded, encoder, examples):
    for example in examples[:2]:
        message = user_message(example.question, num_images=len(example.images))
        pictures = iter(map(load_rgb, example.images))
        content = [
            {"type": "image", "image": next(pictures)} if part["type"] == "image" else part
            for part in message["content"]
        ]
        expected = loaded.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            enable_thinking=False,
        )
        sample = encoder.encode(example)
        batch = encoder.generation_batch([sample])
        assert torch.equal(batch["input_ids"], expected["input_ids"])
        assert torch.equal(batch["pixel_values"], expected["pixel_values"])
        assert sample.num_tokens == batch["input_ids"].shape[1] + len(sample.answer_ids)
        count = encoder.count(example)
        assert count.total == sample.num_tokens


def test_the_loss_is_the_models_own(loaded, encoder, examples):
    samples = [encoder.encode(example) for example in examples]
    batch = encoder.training_batch(samples)
    num_answer_tokens = int((batch["labels"] != IGNORED).sum())
    loaded.use_for(training=True)
    expected = loaded.model(**batch, num_items_in_batch=num_answer_tokens).loss
    loss = PlainEngine(loaded, encoder).loss(samples, num_answer_tokens)
    assert torch.allclose(loss, expected, rtol=1e-5)
    halves = [
        PlainEngine(loaded, encoder).loss(half, num_answer_tokens)
        for half in (samples[:2], samples[2:])
    ]
    assert torch.allclose(sum(halves), expected, rtol=1e-5)


def answers(loaded, encoder, examples, batch_size):
    options = {"max_new_tokens": 8, "batch_size": batch_size, "decoding": Decoding.plain}
    return [own.text for own in generate(loaded, encoder, examples, **options)]


def test_the_size_of_a_batch_changes_no_answer(loaded, encoder, examples):
    one_by_one = answers(loaded, encoder, examples, 1)
    assert answers(loaded, encoder, examples, len(examples)) == one_by_one
    assert len(set(one_by_one)) > 1


def test_a_question_without_a_picture_is_answered(loaded, encoder, examples):
    blind = [dataclasses.replace(e, images=(), image_ids=()) for e in examples]
    assert answers(loaded, encoder, blind, 3) == answers(loaded, encoder, blind, 1)
    mixed = [blind[0], examples[0], blind[1], examples[1]]
    assert answers(loaded, encoder, mixed, 4) == answers(loaded, encoder, mixed, 1)


def test_the_vision_tower_is_adapted_only_when_asked(config, loaded):
    def is_vision(name):
        return ".vision" in name or ".visual." in name

    names = [name for name, _ in loaded.trainable]
    assert names
    assert not any(map(is_vision, names))
    lora = LoraConfig(r=4, vision_layers=True)
    both = load_model(config, lora, gradient_checkpointing=False, seed=0)
    names = [name for name, _ in both.trainable]
    assert {is_vision(name) for name in names} == {True, False}
    assert not both.has_frozen_vision
    assert not any("projector" in name or "connector" in name for name in names)


def test_plain_peft_gives_the_same_answers(loaded, encoder, examples, config, tmp_path):
    expected = answers(loaded, encoder, examples, 3)
    save_adapter(loaded, tmp_path / "adapter")
    base = AutoModelForImageTextToText.from_pretrained(config.path, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    again = dataclasses.replace(loaded, model=model)
    assert answers(again, encoder, examples, 3) == expected


def test_the_preview_counts_image_tokens_and_marks_the_answer(encoder, examples):
    text = preview(encoder, encoder.encode(examples[0]))
    assert "image tokens>" in text
    assert text.split("[[")[1].strip().startswith(examples[0].answers[0])
