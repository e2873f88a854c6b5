"""The prediction cache: the answers that would be computed; a miss where they could differ."""

import ast
import dataclasses
import json
import multiprocessing
import re
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medvqa import generation, identity, predictions
from medvqa.collate import Encoder
from medvqa.config import BertScoreConfig, Decoding, EvaluationConfig, LoraConfig
from medvqa.evaluation import Evaluator, without_images
from medvqa.example import UserError
from medvqa.identity import BASE, adapter_digest, digest_tensors, question_keys
from medvqa.image import load_rgb
from medvqa.model import load_model
from medvqa.predictions import FILE, Answer, PredictionCache, check_place
from medvqa.pretrained import set_pixel_budget
from tests.conftest import TINY, PngImage
from tests.test_layers import imported
from tests.test_several_gpus import in_ranks


@pytest.fixture(scope="module")
def loaded():
    return load_model(TINY, LoraConfig(rank=4, alpha=8), gradient_checkpointing=False, seed=0)


@pytest.fixture
def processor_encoder(loaded):
    return Encoder(loaded.processor, max_length_tokens=512)


@pytest.fixture(scope="module")
def asked(phantoms):
    """Ten questions, a pair of pictures among them; the first comes twice."""
    alone = [example for example in phantoms if len(example.images) == 1]
    pair = next(example for example in phantoms if len(example.images) == 2)
    return [*alone[:8], pair, replace(alone[0], id="again")]


def evaluation(cache, **values):
    return EvaluationConfig(
        max_new_tokens=8,
        batch_size=4,
        bootstrap_samples=20,
        cache=cache and str(cache),
        bertscore=BertScoreConfig(enabled=False),
        **values,
    )


def evaluate(loaded, encoder, examples, directory, cache, **options):
    """Evaluate as a run does; return what is known of it and its predictions."""
    evaluator = Evaluator(
        {"test": examples}, evaluation(cache), directory=directory, seed=0, **options
    )
    (result,) = evaluator.model(loaded, encoder, phase="zero_shot", step=0)
    place = evaluator.place("zero_shot", "test")
    return result, (place / "predictions.jsonl").read_text()


def test_the_same_evaluation_again_computes_nothing_and_says_so(
    loaded, processor_encoder, asked, tmp_path, monkeypatch, caplog
):
    encoder, cache = processor_encoder, tmp_path / "cache"
    computed, expected = evaluate(loaded, encoder, asked, tmp_path / "off", None)
    first, texts = evaluate(loaded, encoder, asked[:6], tmp_path / "part", cache)
    assert (computed.num_cached_answers, first.num_cached_answers) == (0, 0)
    assert expected.startswith(texts)
    # Six are known, and the question that comes twice.
    whole, texts = evaluate(loaded, encoder, asked, tmp_path / "whole", cache)
    assert (whole.num_cached_answers, texts) == (7, expected)
    monkeypatch.setattr(generation, "shared_prefix", None)
    caplog.set_level("INFO")
    again, texts = evaluate(loaded, encoder, asked, tmp_path / "again", cache)
    assert f"10 of 10 answers come from the cache {cache}" in caplog.text
    assert texts == expected
    assert replace(again, num_cached_answers=0) == computed
    assert computed.num_cut_answers  # so that it is kept, too
    metrics = json.loads((tmp_path / "again/evaluation/zero_shot/test/metrics.json").read_text())
    assert metrics["num_cached_answers"] == 10


def test_ranks_share_what_the_cache_lacks(loaded, asked, tmp_path):
    encoder = Encoder(loaded.processor, max_length_tokens=512)
    _, expected = evaluate(loaded, encoder, asked, tmp_path / "alone", None)
    evaluate(loaded, encoder, asked[:3], tmp_path / "part", tmp_path / "cache")

    def part(ranks):
        for name, num_known in (("two", 4), ("again", 10)):
            config = evaluation(tmp_path / "cache")
            evaluator = Evaluator(
                {"test": asked}, config, directory=tmp_path / name, seed=0, ranks=ranks
            )
            (result,) = evaluator.model(loaded, encoder, phase="zero_shot", step=0)
            assert result.num_cached_answers == num_known
            path = evaluator.place("zero_shot", "test") / "predictions.jsonl"
            assert path.read_text() == expected

    in_ranks(2, part)


def keys_of(loaded, encoder, examples, **changed):
    options = {"max_new_tokens": 8, "decoding": Decoding.auto, **changed}
    return question_keys(loaded, encoder, examples, **options)


def with_a_brighter_pixel(examples):
    def brighter(image):
        pixels = np.array(load_rgb(image))
        pixels[0, 0, 0] ^= 1
        return PngImage(image.name, pixels)

    return [replace(e, images=tuple(map(brighter, e.images))) for e in examples]


EXAMPLES_CHANGED = {
    "question": lambda rows: [replace(e, question=e.question + " Why?") for e in rows],
    "pixel": with_a_brighter_pixel,
    "blind": lambda rows: [without_images(e) for e in rows],
}


@pytest.mark.parametrize("change", EXAMPLES_CHANGED)
def test_another_question_or_picture_is_another_key(loaded, asked, processor_encoder, change):
    before = keys_of(loaded, processor_encoder, asked)
    after = keys_of(loaded, processor_encoder, EXAMPLES_CHANGED[change](asked))
    assert not set(before) & set(after)


def test_only_what_an_answer_depends_on_is_in_the_key(loaded, asked, processor_encoder):
    pair = next(e for e in asked if len(e.images) == 2)
    keys = keys_of(loaded, processor_encoder, [*asked, pair])
    assert keys[0] == keys[9]  # another id, the same question and picture
    assert len(set(keys)) == 9
    turned = replace(pair, images=pair.images[::-1], image_ids=pair.image_ids[::-1])
    other_answers = replace(pair, answers=("something",), source="elsewhere", split="train")
    assert keys_of(loaded, processor_encoder, [other_answers]) == keys[-1:]
    assert keys_of(loaded, processor_encoder, [turned]) != keys[-1:]


def test_another_setting_or_weight_is_another_key(asked, tiny):
    encoder = Encoder(tiny.processor, max_length_tokens=512)
    rows = asked[:1]
    seen = {*keys_of(tiny, encoder, rows)}

    def is_new(**changed):
        (key,) = keys_of(
            changed.pop("loaded", tiny), changed.pop("encoder", encoder), rows, **changed
        )
        known = key in seen
        seen.add(key)
        return not known

    assert not is_new()
    assert is_new(max_new_tokens=9)
    assert is_new(decoding=Decoding.plain)
    assert is_new(encoder=Encoder(tiny.processor, max_length_tokens=511))
    assert is_new(loaded=dataclasses.replace(tiny, dtype=torch.bfloat16))
    assert is_new(loaded=dataclasses.replace(tiny, is_quantized=True))
    layer = tiny.inner.model.language_model.layers[0]
    with torch.no_grad():
        layer.mlp.down_proj.base_layer.weight[0, :2] *= -1  # two flipped signs
        assert is_new()
        layer.input_layernorm.weight[0] += 1e-6
        assert is_new()
        parameter = next(p for name, p in tiny.trainable if "lora_B" in name)
        parameter[0, 0] = 1e-3
        assert is_new()
        parameter[0, 0] = 2e-3
        assert is_new()
    tiny.model.active_peft_config.lora_alpha = 16
    assert is_new()
    assert is_new(decoding=Decoding.plain)
    layer.mlp.forward = layer.mlp.forward  # as an engine replaces it
    assert is_new(decoding=Decoding.plain)
    assert not is_new()
    set_pixel_budget(tiny.processor, replace(TINY, max_pixels=64 * 64))
    assert is_new()


def test_an_adapter_that_adds_nothing_is_the_base_whatever_its_rank_and_seed(
    loaded, asked, processor_encoder
):
    expected = keys_of(loaded, processor_encoder, asked)
    lora = LoraConfig(rank=8, alpha=4, target_modules=["q_proj"], vision_layers=True)
    other = load_model(TINY, lora, gradient_checkpointing=False, seed=7)
    assert keys_of(other, processor_encoder, asked) == expected
    with torch.no_grad():
        for name, parameter in other.trainable:
            if "lora_B" in name:
                parameter += 0.01
    assert not set(keys_of(other, processor_encoder, asked)) & set(expected)
    assert adapter_digest(other) != BASE
    with other.adapter_disabled():
        assert keys_of(other, processor_encoder, asked) == expected


def test_the_digest_sees_every_bit_and_the_place_of_every_value(monkeypatch):
    values = torch.arange(999, dtype=torch.int16).view(torch.bfloat16)  # no multiple of eight bytes
    digests = [digest_tensors([("a", values)])]
    for change in ([0, 998], [498, 499]):
        other = values.clone()
        other[change] = values[change].flip(0)
        digests.append(digest_tensors([("a", other)]))
    digests += [
        digest_tensors([("b", values)]),
        digest_tensors([("a", values.float())]),
        digest_tensors([("a", values.view(9, 111))]),
        digest_tensors([("a", values), ("b", values)]),
        digest_tensors([]),
    ]
    assert len(set(digests)) == len(digests)
    monkeypatch.setattr("medvqa.identity.CHUNK_BYTES", 256)
    assert digest_tensors([("a", values)]) == digests[0]


def test_an_edit_of_any_module_that_computes_answers_is_another_key():
    package = Path(identity.__file__).parent
    # What only speaks, or reaches an answer through the prompt's tokens and the config alone.
    known, seen = {"example", "config", "prompt", "progress", "hardware"}, {"generation"}
    waiting = ["generation"]
    while waiting:
        text = (package / f"{waiting.pop()}.py").read_text(encoding="utf-8")
        # By name as well: kernels.py imports triton_kernels where there is a GPU.
        named = set(re.findall(r"\bmedvqa\.(\w+)", text))
        imports = imported(list(ast.walk(ast.parse(text))))
        found = {name.split(".")[1] for name in imports if name.startswith("medvqa.")} | named
        waiting += found - seen - known
        seen |= found - known
    assert seen == set(identity.CODE)


ANSWERS = {
    f"key {number}": Answer(f"left {number} µm", number % 2 == 0, number) for number in range(20)
}


def test_a_damaged_answer_is_forgotten_counted_and_computed_anew(tmp_path, caplog):
    cache = PredictionCache(tmp_path)
    cache.keep(ANSWERS)
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("update answers set answer = x'5b5d' where key = 'key 3'")
        connection.execute(
            "update answers set checksum = (select checksum from answers where key = 'key 5'), "
            "answer = (select answer from answers where key = 'key 5') where key = 'key 4'"
        )
    found = cache.find(ANSWERS)
    assert found == {k: v for k, v in ANSWERS.items() if k not in ("key 3", "key 4")}
    assert "2 cached answers are damaged and computed anew" in caplog.text
    cache.keep({k: ANSWERS[k] for k in ("key 3", "key 4")})
    assert cache.find(ANSWERS) == ANSWERS


def test_a_damaged_file_is_set_aside_and_an_unusable_place_only_costs_time(tmp_path, caplog):
    (tmp_path / FILE).write_bytes(b"no database " * 1000)
    cache = PredictionCache(tmp_path)
    assert cache.find(ANSWERS) == {}
    assert "moved to" in caplog.text
    cache.keep(ANSWERS)
    assert cache.find(ANSWERS) == ANSWERS
    (tmp_path / "file").write_text("")
    nowhere = PredictionCache(tmp_path / "file" / "below")
    nowhere.keep(ANSWERS)
    assert nowhere.find(ANSWERS) == {}
    assert "no prediction cache" in caplog.text
    with pytest.raises(UserError, match="below cannot be made: Not a directory"):
        check_place(str(tmp_path / "file" / "below"))


def write_many(directory, writer):
    cache = PredictionCache(directory)
    for number in range(20):
        cache.keep({f"key {number}": Answer(f"of {writer}", False, number)})
        cache.find([f"key {number}"])


def test_processes_write_at_the_same_time_and_the_first_answer_stays(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(tmp_path, n)) for n in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    cache = PredictionCache(tmp_path)
    before = cache.find(ANSWERS)
    assert before.keys() == ANSWERS.keys()
    cache.keep(ANSWERS)
    assert cache.find(ANSWERS) == before


def test_the_oldest_answers_make_room(tmp_path, monkeypatch):
    cache = PredictionCache(tmp_path)
    cache.keep(ANSWERS)
    monkeypatch.setattr(predictions, "MAX_BYTES", 1)
    cache.keep({"new": Answer("right", False, 2)})
    assert list(cache.find([*ANSWERS, "new"])) == [*list(ANSWERS)[5:], "new"]
