"""Questions of many clients -> batches of one model."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from medvqa.serve.answering import Prepared, Reply
from medvqa.serve.errors import overloaded

log = logging.getLogger(__name__)

AnswerAll = Callable[[Sequence[Prepared]], Sequence[Reply]]
Waiting = tuple[Prepared, "Future[Reply]"]


class Batcher:
    """Answers what has come within some milliseconds as one batch, in one thread.

    Args:
        answer_all: Answers a batch; an error concerns all of it.
        max_batch: Questions at once.
        max_wait_s: How long the first question of a batch waits for others.
        max_waiting: Questions that may wait; the next one is refused.
    """

    def __init__(
        self, answer_all: AnswerAll, *, max_batch: int, max_wait_s: float, max_waiting: int
    ) -> None:
        self._answer_all = answer_all
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._queue: queue.Queue[Waiting | None] = queue.Queue(maxsize=max_waiting)
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="answers", daemon=True)
        self._thread.start()

    def submit(self, question: Prepared) -> "Future[Reply]":
        """Return the answer to come.

        Raises:
            RequestError: If too many wait, or the server is about to stop.
        """
        answer: Future[Reply] = Future()
        if self._is_closing.is_set():
            raise overloaded("the server is stopping")
        try:
            self._queue.put_nowait((question, answer))
        except queue.Full:
            raise overloaded(f"{self._queue.maxsize} questions wait already") from None
        return answer

    @property
    def is_alive(self) -> bool:
        """Whether questions are being answered."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Answer all that waits, then stop."""
        self._is_closing.set()
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = [first]
            deadline = time.monotonic() + self._max_wait_s
            while len(batch) < self._max_batch:
                try:
                    waiting = self._queue.get(timeout=max(deadline - time.monotonic(), 0))
                except queue.Empty:
                    break
                if waiting is None:
                    self._queue.put(None)  # the end comes after this batch
                    break
                batch.append(waiting)
            self._answer([w for w in batch if w[1].set_running_or_notify_cancel()])

    def _answer(self, batch: Sequence[Waiting]) -> None:
        if not batch:  # all clients have left
            return
        started = time.monotonic()
        try:
            answers = self._answer_all([question for question, _ in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            # One question's fault must not be another's.
            log.warning("a batch of %d failed (%s): one by one", len(batch), type(error).__name__)
            for waiting in batch:
                self._answer([waiting])
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            future.set_result(answer)
        log.info("answered %d in %.3f s", len(batch), time.monotonic() - started)
