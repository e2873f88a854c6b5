"""What the model is fed, checked against the library's own processor."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from medvqa.config.errors import UserError
from medvqa.data.image import load_rgb
from medvqa.models.encode import Encoder
from medvqa.models.patches import Patches
from medvqa.models.preview import preview
from medvqa.models.sample import IGNORED
from tests.conftest import PngImage


def two_images(phantoms):
    return next(example for example in phantoms if len(example.images) == 2)


def test_tokens_and_patches_are_those_of_the_processor(encoder, phantoms):
    for example in (phantoms[0], two_images(phantoms)):
        expected = encoder.processor(
            text=[encoder.prompt(example.question, num_images=len(example.images))],
            images=[load_rgb(image) for image in example.images],
            return_tensors="pt",
        )
        sample = encoder.encode(example)
        assert list(sample.prompt_ids) == expected["input_ids"][0].tolist()
        assert torch.equal(sample.pixel_values, expected["pixel_values"])
        batch = encoder.generation_batch([sample])
        assert torch.equal(batch["mm_token_type_ids"], expected["mm_token_type_ids"])


def test_the_loss_is_on_the_answer_and_its_end_only(encoder, phantoms):
    samples = [encoder.encode(phantoms[0]), encoder.encode(two_images(phantoms))]
    batch = encoder.training_batch(samples)
    for row, sample, example in zip(
        batch["labels"], samples, (phantoms[0], two_images(phantoms)), strict=True
    ):
        supervised = row[row != IGNORED].tolist()
        tokenizer = encoder.processor.tokenizer
        assert tokenizer.decode(supervised) == example.answers[0] + tokenizer.eos_token
        assert (row[: len(sample.prompt_ids)] == IGNORED).all()


def test_prompts_end_in_the_same_column_for_generation(encoder, phantoms):
    samples = [encoder.encode(phantoms[0]), encoder.encode(two_images(phantoms))]
    batch = encoder.generation_batch(samples)
    assert batch["attention_mask"][:, -1].tolist() == [1, 1]
    for row, sample in zip(batch["input_ids"], samples, strict=True):
        assert tuple(row[-len(sample.prompt_ids) :].tolist()) == sample.prompt_ids
    assert batch["attention_mask"].sum(dim=1).tolist() == [len(s.prompt_ids) for s in samples]


def test_a_sample_above_the_limit_is_an_error_and_never_cut(tiny, phantoms):
    short = Encoder(tiny.processor, max_length_tokens=20)
    with pytest.raises(UserError, match=r"phantom-test-000000-0: \d+ tokens .*=20; raise it"):
        short.encode(phantoms[0])


def test_lengths_are_checked_to_the_token_before_anything_is_encoded(tiny, encoder, phantoms):
    spoken = dataclasses.replace(phantoms[1], question="Größe der Läsion? 病变 🩻" * 9)
    # So thin a picture exceeds the pixel budget: no side is less than a token.
    line = PngImage("thin", np.zeros((20, 900), dtype=np.uint8))
    thin = dataclasses.replace(phantoms[2], images=(line,), image_ids=("thin",))
    examples = [*phantoms[:20], two_images(phantoms), spoken, thin]
    sizes = [encoder.encode(example).num_tokens for example in examples]
    for example, size in zip(examples, sizes, strict=True):
        Encoder(tiny.processor, max_length_tokens=size).check_lengths([example])
        with pytest.raises(UserError, match=f"1 samples are longer .*with {size} tokens"):
            Encoder(tiny.processor, max_length_tokens=size - 1).check_lengths([example])
    limit = sorted(sizes)[-3]
    num_longer = sum(size > limit for size in sizes)
    longest = examples[sizes.index(max(sizes))].id
    with pytest.raises(
        UserError, match=f"^{num_longer} samples are .*{longest}, with {max(sizes)}"
    ):
        Encoder(tiny.processor, max_length_tokens=limit).check_lengths(examples)


def test_a_large_image_keeps_to_the_pixel_budget(encoder, phantoms):
    picture = PngImage("large", np.zeros((900, 700), dtype=np.uint8))
    example = dataclasses.replace(phantoms[0], images=(picture,), image_ids=("large",))
    sample = encoder.encode(example)
    assert int(sample.image_grid_thw.prod()) * 16 * 16 <= 128 * 128
    num_image_tokens = sample.prompt_ids.count(encoder.image_token_id)
    assert num_image_tokens == int(sample.image_grid_thw.prod()) // 4


def test_encoders_that_share_patches_cut_each_picture_once_while_there_is_room(tiny, phantoms):
    def encode(example, patches):
        return Encoder(tiny.processor, max_length_tokens=512, patches=patches).encode(example)

    first, *others = {example.image_ids: example for example in phantoms[:40]}.values()
    kept = Patches(max_bytes=2**20)
    sample = encode(first, kept)
    assert encode(first, kept).pixel_values is sample.pixel_values
    for example in others:
        encode(example, kept)
        assert 0 < kept.num_bytes <= 2**20
    again = encode(first, kept)
    assert again.pixel_values is not sample.pixel_values, "the room was enough for all of them"
    assert torch.equal(again.pixel_values, sample.pixel_values)
    kept.clear()
    assert kept.num_bytes == 0


def test_the_preview_marks_the_answer_and_counts_image_tokens(encoder, phantoms):
    text = preview(encoder, encoder.encode(phantoms[0]))
    assert "<16 image tokens>" in text
    assert text.endswith(f"[[{phantoms[0].answers[0]}<|im_end|>]]")
    assert phantoms[0].question in text.split("[[")[0]


def test_patches_in_the_towers_type_are_what_it_casts_to_itself(tiny, phantoms):
    tower = copy.deepcopy(tiny.inner.model.visual).to(torch.bfloat16)

    def features(**options):
        encoder = Encoder(tiny.processor, max_length_tokens=512, **options)
        sample = encoder.encode(phantoms[0])
        pixels = sample.pixel_values
        with torch.no_grad():
            return pixels.dtype, tower(pixels, sample.image_grid_thw).pooler_output

    whole, expected = features()
    half, found = features(pixel_dtype=torch.bfloat16)
    assert (whole, half) == (torch.float32, torch.bfloat16)
    assert torch.equal(found, expected)


def test_a_text_that_stands_for_a_picture_is_refused_before_anything_is_encoded(encoder, phantoms):
    example = dataclasses.replace(phantoms[0], question="Is <|image_pad|> normal?")
    for refuse in (encoder.encode, lambda e: encoder.check_lengths([e])):
        with pytest.raises(UserError, match=r"phantom-test-.*contains <\|image_pad\|>"):
            refuse(example)


def test_an_answer_that_the_template_would_hide_is_refused(encoder, phantoms):
    example = dataclasses.replace(phantoms[0], answers=("left<|im_end|>right",))
    with pytest.raises(UserError, match="not the answer and the end of the turn"):
        encoder.encode(example)
