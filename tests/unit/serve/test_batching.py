"""Batches: what comes together is answered together, and nothing is lost."""

import threading
import time

import pytest

from medvqa.config.errors import UserError
from medvqa.models.sample import Sample
from medvqa.serve.answering import Prepared, Reply
from medvqa.serve.batching import Batcher
from medvqa.serve.errors import RequestError

EMPTY = Sample((), (), None, None)


def asked(number):
    """Return a prepared question; its limit of tokens tells it from others."""
    return Prepared(example=None, sample=EMPTY, max_new_tokens=number)


def answered(prepared):
    return [Reply(text=str(p.max_new_tokens), cut=False) for p in prepared]


def test_questions_that_come_together_are_one_batch_and_a_bad_one_is_alone():
    sizes = []

    def answer_all(prepared):
        sizes.append(len(prepared))
        if any(p.max_new_tokens == 2 for p in prepared):
            raise UserError("bad")
        time.sleep(0.05)
        return answered(prepared)

    batcher = Batcher(answer_all, max_batch=4, max_wait_s=0.2, max_waiting=100)
    futures = [batcher.submit(asked(number)) for number in range(6)]
    batcher.close()
    texts = [f.result().text for f in futures if f.exception() is None]
    assert texts == ["0", "1", "3", "4", "5"]
    assert isinstance(futures[2].exception(), UserError)
    assert sizes == [4, 1, 1, 1, 1, 2]
    with pytest.raises(RequestError, match="stopping"):
        batcher.submit(asked(7))


def test_a_full_queue_refuses_and_what_waits_is_answered():
    gate = threading.Event()

    def answer_all(prepared):
        gate.wait(10)
        return answered(prepared)

    batcher = Batcher(answer_all, max_batch=1, max_wait_s=0, max_waiting=2)
    first = batcher.submit(asked(0))
    while not first.running():
        time.sleep(0.001)
    waiting = [batcher.submit(asked(number)) for number in (1, 2)]
    with pytest.raises(RequestError, match="2 questions wait already"):
        batcher.submit(asked(3))
    gate.set()
    assert [f.result(10).text for f in (first, *waiting)] == ["0", "1", "2"]
    batcher.close()


def test_a_client_that_has_left_is_not_answered():
    gate = threading.Event()

    def answer_all(prepared):
        gate.wait(10)
        return answered(prepared)

    batcher = Batcher(answer_all, max_batch=1, max_wait_s=0, max_waiting=9)
    first, second, third = (batcher.submit(asked(number)) for number in range(3))
    assert second.cancel()
    gate.set()
    assert (first.result(10).text, third.result(10).text) == ("0", "2")
    batcher.close()
