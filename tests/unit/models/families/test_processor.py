"""Families without Qwen's pixel budget: their own size options, and what cannot be set."""

import dataclasses

import numpy as np
import pytest

from medvqa.config.errors import UserError
from medvqa.config.evaluation import Decoding
from medvqa.config.lora import LoraConfig
from medvqa.config.model import ModelConfig
from medvqa.evaluation.generate import generate
from medvqa.models.encode import Encoder
from medvqa.models.load import load_model
from medvqa.models.source import load_processor
from tests.conftest import SHARED, PngImage
from tests.tiny_models import save_tiny

# Option, and the tokens that a picture of 120 x 60 pixels adds without and with it.
OPTIONS = {
    "gemma3": {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 28},
    "internvl": {"crop_to_patches": False},
    "smolvlm": {"size": {"longest_edge": 28}},
    "llava_onevision": {"image_grid_pinpoints": [[28, 28]]},
    "glm4v": {"size": {"shortest_edge": 784, "longest_edge": 784}},
}


@pytest.fixture(scope="module", params=OPTIONS)
def base(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param)
    save_tiny(request.param, place, SHARED)
    return ModelConfig(name="a/tiny", path=str(place))


def family_of(base):
    return next(name for name in OPTIONS if name in base.path)


@pytest.fixture
def wide(phantoms):
    picture = PngImage("wide", np.zeros((60, 120, 3), dtype=np.uint8))
    return dataclasses.replace(phantoms[0], images=(picture,), image_ids=("wide",))


def test_a_size_option_changes_the_tokens_and_the_model_follows(base, wide):
    changed = dataclasses.replace(base, image_options=OPTIONS[family_of(base)])
    num_tokens = []
    for config in (base, changed):
        loaded = load_model(config, LoraConfig(r=2), gradient_checkpointing=False, seed=0)
        encoder = Encoder(loaded.processor, max_length_tokens=2048)
        num_tokens.append(encoder.encode(wide).num_tokens)
        generate(loaded, encoder, [wide], max_new_tokens=2, batch_size=1, decoding=Decoding.plain)
    assert num_tokens[0] != num_tokens[1]


def test_an_unknown_size_option_names_the_known_ones(base):
    (option, *_) = OPTIONS[family_of(base)]
    config = dataclasses.replace(base, image_options={"tiles": 3})
    with pytest.raises(UserError, match=rf"image_options\.tiles cannot be set .*{option}"):
        load_processor(config)


def test_a_pixel_budget_that_the_family_lacks_names_its_own_options(base):
    (option, *_) = OPTIONS[family_of(base)]
    for budget in ({"max_pixels": 50176}, {"min_pixels": 784}):
        config = dataclasses.replace(base, **budget)
        with pytest.raises(UserError, match=rf"model\.max_pixels cannot be set for .*{option}"):
            load_processor(config)


def test_a_size_takes_only_the_keys_that_the_processor_has(base):
    config = dataclasses.replace(base, image_options={"size": {"depth": 3}})
    with pytest.raises(UserError, match="must be a mapping with"):
        load_processor(config)


def test_size_options_are_not_for_families_with_a_pixel_budget():
    config = ModelConfig(name="medvqa/tiny", image_options={"size": {"longest_edge": 9}})
    with pytest.raises(UserError, match=r"model\.image_options\.size .*model\.max_pixels"):
        load_processor(config)
