"""Bases from scratch: the embedded one is what the command builds; no test picture gets in."""

import pytest
from transformers import AutoConfig, AutoTokenizer

from medvqa.config.data import SourceConfig
from medvqa.config.errors import UserError
from medvqa.config.model import ModelConfig
from medvqa.data.pool import load_examples
from medvqa.models.source import EMBEDDED, model_source
from tools.base_model import SHAPES, build_model, build_tokenizer
from tools.base_training import encoded_at_once
from tools.build_base import spoken_rows
from tools.pretraining_texts import pretraining_examples, vocabulary_texts

TINY = EMBEDDED["medvqa/tiny"]


def vqa_rad(shared, split):
    path = str(shared / "data" / "vqa_rad")
    return load_examples(SourceConfig(name="vqa_rad", path=path, split=split), seed=0)


def test_the_embedded_base_has_the_shape_and_words_that_the_command_builds():
    stored = AutoConfig.from_pretrained(TINY).to_dict()
    tokenizer = build_tokenizer(vocabulary_texts(), vocabulary_size=1024)
    built = build_model(tokenizer, SHAPES["tiny"], seed=0).config.to_dict()
    for part in ("text_config", "vision_config"):
        for values in (stored, built):  # written by saving, in the type that was saved
            values[part].pop("dtype", None)
        assert built[part] == stored[part]
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(TINY).get_vocab()


def test_pretraining_asks_no_question_about_a_phantom():
    texts = list(pretraining_examples(50, seed=0))
    assert len(texts) > 300
    assert not any("?" in example.question for example in texts)


def test_real_pretraining_text_shows_training_pictures_only(shared):
    spoken = list(spoken_rows(vqa_rad(shared, "train_disjoint")))
    test = vqa_rad(shared, "test_disjoint")
    assert len(spoken) == 3 * 1795
    pictures = {name for example in spoken for name in example.image_ids}
    assert not pictures & {name for example in test for name in example.image_ids}
    assert len({example.id for example in spoken}) == len(spoken)


def test_a_base_without_weights_says_how_to_build_them():
    with pytest.raises(UserError, match=r"build_base --size small --output DIR.*model.path=DIR"):
        model_source(ModelConfig(name="medvqa/small"))


def test_what_a_gpu_is_fed_is_what_a_cpu_encodes(encoder):
    texts = list(pretraining_examples(4, seed=0))
    at_once = encoded_at_once(encoder, texts, "cpu")
    for index, text in enumerate(texts):
        found, expected = at_once(index), encoder.encode(text)
        assert (found.prompt_ids, found.answer_ids) == (expected.prompt_ids, expected.answer_ids)
        assert found.pixel_values.equal(expected.pixel_values.bfloat16())
