"""Answers: independent of the batch, in the order of the questions, without the prompt."""

import pytest

from medvqa.generation import generate


@pytest.fixture
def mixed(phantoms):
    pairs = [example for example in phantoms if len(example.images) == 2]
    return [*phantoms[:20], *pairs[:4]]


def answer(tiny, encoder, examples, **options):
    return generate(tiny, encoder, examples, **{"max_new_tokens": 24, "batch_size": 8, **options})


def test_the_batch_size_changes_no_answer(tiny, encoder, mixed):
    alone = answer(tiny, encoder, mixed, batch_size=1)
    assert len(set(alone.texts)) > 3  # the base says something, and not always the same
    for batch_size in (3, 24):
        assert answer(tiny, encoder, mixed, batch_size=batch_size) == alone


def test_answers_come_in_the_order_of_the_questions(tiny, encoder, mixed):
    forward = answer(tiny, encoder, mixed).texts
    assert answer(tiny, encoder, mixed[::-1]).texts == forward[::-1]


def test_neither_prompt_nor_special_tokens_leak_into_the_answer(tiny, encoder, mixed):
    for text in answer(tiny, encoder, mixed).texts:
        assert "Answer with" not in text
        assert "<|" not in text
        assert "assistant" not in text


def test_answers_that_hit_the_limit_are_counted(tiny, encoder, mixed):
    assert answer(tiny, encoder, mixed, max_new_tokens=1).num_cut == len(mixed)
