"""What answers behind the server: the model in this process, or another program's endpoint."""

import asyncio
import logging
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from medvqa.config.errors import UserError
from medvqa.data.image import ImageBytes
from medvqa.export.vllm import vllm_command
from medvqa.models.trained import Kind, Trained
from medvqa.serve.answering import PIXELS_AT_ONCE, Answerer, Prepared, Reply
from medvqa.serve.batching import Batcher
from medvqa.serve.endpoint import Endpoint
from medvqa.serve.hosts import LOOPBACK
from medvqa.serve.intake import Question
from medvqa.serve.pixels import PixelLimit

log = logging.getLogger(__name__)

START_TIMEOUT_S = 1800.0  # loading and compiling a large model
STOP_TIMEOUT_S = 30.0
POLL_S = 0.2
MAX_WAIT_S = 0.005
MAX_WAITING = 256
FORWARDED_TIMEOUT_S = 300.0


class OwnEngine:
    """The evaluator's model in this process."""

    def __init__(self, answerer: Answerer, *, max_wait_s: float = MAX_WAIT_S) -> None:
        self._answerer = answerer
        self._batcher = Batcher(
            answerer.answer_prepared,
            max_batch=answerer.batch_size,
            max_wait_s=max_wait_s,
            max_waiting=MAX_WAITING,
        )
        # A model that cannot answer must not look healthy.
        self._batcher.submit(self.prepare(Question(text="Is this a test?", images=()))).result()

    def describe(self) -> Mapping[str, Any]:
        """Return base, adapter, pixel budget and the run's metrics."""
        return self._answerer.describe()

    @property
    def is_healthy(self) -> bool:
        """Whether its thread lives."""
        return self._batcher.is_alive

    def prepare(self, question: Question) -> Prepared:
        """Encode the question; raise `UserError` if it is refused."""
        return self._answerer.prepare(question)

    async def answer(self, prepared: Prepared | Question) -> Reply:
        """Answer, together with others that come now."""
        assert isinstance(prepared, Prepared)
        return await asyncio.wrap_future(self._batcher.submit(prepared))

    def close(self) -> None:
        """Answer what waits."""
        self._batcher.close()


class ProgramEngine:
    """A program that serves the model on a port of its own; requests are forwarded to it.

    Args:
        trained: What it serves.
        command: Starts it, but for `--host` and `--port`.
        model: What it calls the model.
    """

    def __init__(self, trained: Trained, command: Sequence[str], *, model: str) -> None:
        port = _free_port()
        self._trained = trained
        if trained.calibration is not None:
            log.warning("another program's answers have no confidence: it never abstains")
        self._pixel_limit = PixelLimit(PIXELS_AT_ONCE)
        # In a session of its own: an interrupt from the terminal must not end it before the
        # requests in flight are done. Its messages go to stderr: stdout is for our own line.
        self._process = subprocess.Popen(
            [*command, "--host", LOOPBACK, "--port", str(port)],
            stdout=sys.stderr,
            start_new_session=True,
        )
        self._endpoint = Endpoint(
            base_url=f"http://{LOOPBACK}:{port}/v1",
            model=model,
            api_key=None,
            max_new_tokens=trained.evaluation.max_new_tokens,
            timeout_s=FORWARDED_TIMEOUT_S,
            prompt=trained.prompt,
        )
        try:
            self._wait_until_healthy(f"http://{LOOPBACK}:{port}/health", command[0])
        except BaseException:
            self.close()
            raise

    def _wait_until_healthy(self, url: str, name: str) -> None:
        import httpx

        deadline = time.monotonic() + START_TIMEOUT_S
        with httpx.Client(trust_env=False, timeout=5) as client:
            while time.monotonic() < deadline:
                code = self._process.poll()
                if code is not None:
                    raise UserError(f"{name} ended with code {code}; its own messages are above")
                try:
                    if client.get(url).status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
                time.sleep(POLL_S)
        raise UserError(f"{name} did not become healthy in {START_TIMEOUT_S:.0f} s")

    def describe(self) -> Mapping[str, Any]:
        """Return what is known without loading the model here."""
        model = self._trained.model
        return {"name": self._trained.name, "base": model.name, "max_pixels": model.max_pixels}

    @property
    def is_healthy(self) -> bool:
        """Whether the program runs."""
        return self._process.poll() is None

    def prepare(self, question: Question) -> Question:
        """Decode the images, one after the other, and send only their pixels on."""
        images = []
        for image in question.images:
            with self._pixel_limit.hold(getattr(image, "num_pixels", 0)):
                images.append(ImageBytes(image.name, image.read()))
        return replace(question, images=tuple(images))

    async def answer(self, prepared: Prepared | Question) -> Reply:
        """Forward the question as the tool's endpoint does: same prompt, greedy."""
        assert isinstance(prepared, Question)
        return await asyncio.to_thread(self._endpoint.answer, prepared)

    def close(self) -> None:
        """End the program."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


Engine = OwnEngine | ProgramEngine


def start_vllm(trained: Trained, *, base: str | None) -> ProgramEngine:
    """Start vLLM with the adapter, or with a merged model, and wait until it is healthy.

    Raises:
        UserError: If it is not installed or does not start.
    """
    _require_program("vllm", "pip install vllm, best into an environment of its own")
    command = vllm_command(trained, weights=trained.adapter or trained.directory, base=base)
    return ProgramEngine(trained, command, model=trained.name)


def start_transformers(trained: Trained) -> ProgramEngine:
    """Start `transformers serve` with a merged model and wait until it is healthy.

    Raises:
        UserError: If there is only an adapter, which it cannot load, or it does not start.
    """
    if trained.kind is not Kind.merged:
        raise UserError(
            "transformers serve cannot load an adapter; `medvqa export RUN --merge` first, then "
            "`medvqa serve RUN/export/merged --engine transformers`"
        )
    _require_program("transformers", "pip install 'transformers[serving]'")
    weights = str(trained.directory)
    return ProgramEngine(trained, ["transformers", "serve", weights], model=weights)


def _require_program(name: str, hint: str) -> None:
    if shutil.which(name) is None:
        raise UserError(f"--engine {name}: {name} is not installed; {hint}, or use --engine own")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
