"""Answers: independent of the batch, in the order of the questions, without the prompt."""

import dataclasses
import threading

import pytest
import torch

from medvqa.config.evaluation import Decoding
from medvqa.config.lora import LoraConfig
from medvqa.data.image import load_rgb
from medvqa.data.prefetch import ahead
from medvqa.evaluation import generate as generation
from medvqa.evaluation.generate import generate
from medvqa.fast import pictures
from medvqa.fast.engine import FusedEngine
from medvqa.models.encode import Encoder
from medvqa.models.families import qwen
from medvqa.models.load import load_model
from tests.conftest import TINY

# Nothing here changes the model: one serves all tests.


@pytest.fixture(scope="module")
def tiny():
    return load_model(TINY, LoraConfig(r=4, alpha=8), gradient_checkpointing=False, seed=0)


@pytest.fixture(scope="module")
def encoder(tiny):
    return Encoder(tiny.processor, max_length_tokens=512)


@pytest.fixture(scope="module")
def mixed(phantoms):
    pairs = [example for example in phantoms if len(example.images) == 2]
    return [*phantoms[:20], *pairs[:4]]


@pytest.fixture(scope="module")
def expected(tiny, encoder, mixed):
    return answer(tiny, encoder, mixed)


def answer(tiny, encoder, examples, **options):
    return generate(tiny, encoder, examples, **{"max_new_tokens": 24, "batch_size": 8, **options})


def test_the_batch_size_changes_no_answer(tiny, encoder, mixed, expected):
    # The base says something, and not always the same.
    assert len({own.text for own in expected}) > 3
    for batch_size in (1, 3, 24):
        assert answer(tiny, encoder, mixed, batch_size=batch_size) == expected


def test_a_shared_prefix_changes_no_answer(tiny, encoder, mixed, phantoms):
    several = [e for e in phantoms if e.images[0].name == phantoms[0].images[0].name]
    examples = [*mixed, *several]
    plain = answer(tiny, encoder, examples, decoding=Decoding.plain)
    shared = answer(tiny, encoder, examples, decoding=Decoding.shared_prefix, batch_size=28)
    assert shared == plain


@pytest.mark.parametrize("decoding", [Decoding.plain, Decoding.shared_prefix])
def test_log_probabilities_are_those_of_a_forward_pass_over_the_whole_answer(
    tiny, encoder, phantoms, decoding
):
    examples = [e for e in phantoms if e.answer_type == "closed"][:6] + list(phantoms[:6])
    answers = answer(tiny, encoder, examples, decoding=decoding, max_new_tokens=6)
    engine = FusedEngine(tiny)
    for place, example in enumerate(examples):
        sample = encoder.encode(example)
        with torch.inference_mode():
            new = engine.answer([sample], 6).tokens[0]
        new = new[: answers[place].num_tokens].tolist()
        whole = dataclasses.replace(sample, prompt_ids=(*sample.prompt_ids, *new))
        batch = encoder.generation_batch([whole])
        with torch.inference_mode():
            logits = tiny.model(**batch).logits[0, -len(new) - 1 : -1]
        logprobs = logits.float().log_softmax(-1)
        expected = logprobs.gather(1, torch.tensor(new)[:, None]).sum()
        assert answers[place].logprob == pytest.approx(float(expected), abs=1e-3)
        if example.answers[0] in ("yes", "no"):
            ids = encoder.processor.tokenizer(["yes", "Yes"])["input_ids"]
            yes = sum(float(logprobs[0, tokens[0]].exp()) for tokens in ids)
            assert answers[place].choice_probs["yes"] == pytest.approx(yes, abs=1e-4)
    assert any(own.choice_probs for own in answers)


def test_threads_decode_each_picture_of_a_batch_once_and_change_no_answer(
    tiny, encoder, phantoms, monkeypatch
):
    """As on a GPU, which would otherwise wait for one thread to encode the first batch."""
    singles = [e for e in phantoms if len(e.images) == 1]
    several = [e for e in singles if e.images[0].name == singles[0].images[0].name]
    examples = [*singles[5:12], *several]
    expected = answer(tiny, encoder, examples, batch_size=16)
    decoded = []
    shared = threading.Event()

    def counted(image):
        decoded.append((image.name, threading.current_thread()))
        if len({thread for _, thread in decoded}) > 1:
            shared.set()
        assert shared.wait(timeout=60)  # a busy machine starts the second thread late
        return load_rgb(image)

    def with_threads(function, pieces, **options):
        return ahead(function, pieces, **{**options, "num_threads": 4, "initializer": None})

    monkeypatch.setattr(qwen, "load_rgb", counted)
    monkeypatch.setattr(generation, "ahead", with_threads)
    fresh = Encoder(tiny.processor, max_length_tokens=512)
    assert answer(tiny, fresh, examples, batch_size=16) == expected
    names, threads = zip(*decoded, strict=True)
    assert sorted(names) == sorted({i.name for e in examples for i in e.images})
    assert len(set(threads)) > 1 and threading.current_thread() not in threads


def test_cached_features_change_no_answer(tiny, encoder, mixed, expected, monkeypatch):
    monkeypatch.setattr(pictures, "keeps_features", lambda loaded: True)
    keeping = dataclasses.replace(tiny)
    assert answer(keeping, encoder, mixed) == expected
    num_computed = keeping.features.num_added
    assert answer(keeping, encoder, mixed) == expected
    assert (
        keeping.features.num_added == num_computed == len({i.name for e in mixed for i in e.images})
    )


def test_a_batch_that_does_not_fit_is_halved(tiny, encoder, mixed, expected, monkeypatch, caplog):
    real = FusedEngine.answer

    def small(engine, samples, max_new_tokens):
        if len(samples) > 5:
            raise torch.OutOfMemoryError("the GPU is small")
        return real(engine, samples, max_new_tokens)

    monkeypatch.setattr(FusedEngine, "answer", small)
    assert answer(tiny, encoder, mixed, batch_size=24) == expected
    assert "out of memory with 24 questions at once: half of them" in caplog.text


def test_memory_that_only_saves_time_is_given_back_before_a_batch_is_halved(
    tiny, encoder, mixed, expected, monkeypatch, caplog
):
    real, held = FusedEngine.answer, [True]

    def crowded(engine, samples, max_new_tokens):
        if held[0]:
            raise torch.OutOfMemoryError("training's captured passes fill the GPU")
        return real(engine, samples, max_new_tokens)

    def release(engine):
        held[0], before = False, held[0]
        return before

    monkeypatch.setattr(FusedEngine, "answer", crowded)
    monkeypatch.setattr(FusedEngine, "release_memory", release)
    assert answer(tiny, encoder, mixed, batch_size=24) == expected
    assert "half of them" not in caplog.text


def test_the_engine_looks_at_the_layers_once_per_model(tiny, encoder, mixed, monkeypatch):
    built = []
    real = FusedEngine.__init__
    monkeypatch.setattr(
        FusedEngine, "__init__", lambda engine, loaded: built.append(real(engine, loaded))
    )
    fresh = dataclasses.replace(tiny)
    for _ in range(2):
        answer(fresh, encoder, mixed[:2])
    assert len(built) == 1


def test_answers_come_in_the_order_of_the_questions(tiny, encoder, mixed, expected):
    assert answer(tiny, encoder, mixed[::-1]) == expected[::-1]


def test_neither_prompt_nor_special_tokens_leak_into_the_answer(expected):
    for text in (own.text for own in expected):
        assert "Answer with" not in text
        assert "<|" not in text
        assert "assistant" not in text


def test_answers_that_hit_the_limit_are_counted(tiny, encoder, mixed):
    assert all(own.cut for own in answer(tiny, encoder, mixed, max_new_tokens=1))
