"""A server as its own process, and the ways to ask a run its evaluation questions."""

import base64
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvqa.config.data import SourceConfig
from medvqa.data.example import Example, ImageSource
from medvqa.data.pool import load_examples
from medvqa.serve.answering import Answerer, Question
from medvqa.serve.tool import DISCLAIMER, EMPTY, build
from medvqa.serve.tool_config import Service, ToolConfig
from medvqa.tracking.record import read_json, read_lines

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = 32
START_TIMEOUT_S = 300


@dataclass
class Server:
    """A server as its own process."""

    process: "subprocess.Popen[str]"
    url: str
    model: str
    log: Path

    @property
    def cpu_seconds(self) -> float:
        """Processor time that the server has used."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running_server(run: Path, log: Path, *options: str, checkout: Path = ROOT) -> Iterator[Server]:
    """Start `medvqa serve` on a free port, wait for its one line, and stop it in the end."""
    command = [sys.executable, "-m", "medvqa.cli", "serve", str(run), "--port", "0", *options]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as process,
    ):
        watchdog = threading.Timer(START_TIMEOUT_S, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            watchdog.cancel()
            match = re.fullmatch(r"serving (\S+) on (http://\S+)\n", line)
            if match is None:
                raise RuntimeError(f"the server did not start:\n{log.read_text()}")
            yield Server(process, match[2], match[1], log)
        finally:
            watchdog.cancel()
            process.terminate()


def request_body(example: Example, model: str) -> dict[str, Any]:
    """Return the request of a question as any OpenAI client would send it."""
    urls = [data_url(image) for image in example.images]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content = [*parts, {"type": "text", "text": example.question}]
    return {"model": model, "messages": [{"role": "user", "content": content}], "temperature": 0}


def data_url(image: ImageSource) -> str:
    """Return the picture as a request carries it."""
    return f"data:image/jpeg;base64,{base64.b64encode(image.read()).decode()}"


def ask_all(
    server: Server, examples: Sequence[Example], num_clients: int = CLIENTS
) -> tuple[list[str], list[float], float]:
    """Return answers, seconds of each request, and wall seconds; an error ends it."""
    import httpx

    local = threading.local()
    bodies = [request_body(example, server.model) for example in examples]

    def ask(body: dict[str, Any]) -> tuple[str, float]:
        if not hasattr(local, "client"):
            local.client = httpx.Client(base_url=server.url, timeout=300, trust_env=False)
        started = time.perf_counter()
        response = local.client.post("/chat/completions", json=body)
        response.raise_for_status()
        text = response.json()["choices"][0]["message"]["content"]
        return text, time.perf_counter() - started

    started = time.perf_counter()
    with ThreadPoolExecutor(num_clients) as pool:
        texts, seconds = zip(*pool.map(ask, bodies), strict=True)
    return list(texts), list(seconds), time.perf_counter() - started


def batch_sizes(server: Server) -> list[int]:
    """Return how many questions each batch held, by the server's own log."""
    return [int(n) for n in re.findall(r"^answered (\d+) in", server.log.read_text(), re.M)]


@dataclass(frozen=True)
class Asked:
    """The evaluation set and the evaluator's answers, in its order."""

    examples: Sequence[Example]
    evaluated: Sequence[str]
    zero_shot: Sequence[str]


def asked(run: Path, data: str) -> Asked:
    """Return the run's own evaluation set and answers."""
    config = read_json(run / "run.json")["config"]["data"]
    limit = config["evaluation"]["test"]["limit"]
    source = SourceConfig(name="vqa_rad", path=data, split="test", limit=limit)
    examples = load_examples(source, seed=config["seed"])

    def answers(phase: str) -> list[str]:
        rows = read_lines(run / "evaluation" / phase / "test" / "predictions.jsonl")
        by_id = {row["id"]: row["prediction"] for row in rows}
        return [by_id[example.id] for example in examples]

    return Asked(examples, answers("final"), answers("zero_shot"))


def in_process(directory: Path, examples: Sequence[Example]) -> list[str]:
    """Return the answers of the run, or of an export, loaded into this process."""
    questions = [Question(text=e.question, images=e.images) for e in examples]
    return [answer.text for answer in Answerer.of_run(directory).answer(questions)]


def by_tool(config: ToolConfig, examples: Sequence[Example]) -> list[str]:
    """Return the answers of the agent's tool, without its notes."""
    tool = build(config)

    def ask(example: Example) -> str:
        urls = [data_url(image) for image in example.images]
        lines = tool.great_brain_specialist(example.question, urls).split("\n")
        while lines and (lines[-1] == DISCLAIMER or lines[-1].startswith("Note: ")):
            lines.pop()
        answer = "\n".join(lines)
        return "" if answer == EMPTY else answer

    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(ask, examples))


def of_endpoint(server: Server, run: Path) -> ToolConfig:
    """Return the tool's config for a server."""
    return ToolConfig(service=Service.openai, base_url=server.url, model=server.model, run=str(run))


def equal(texts: Sequence[str], of_run: Asked) -> int:
    """Return how many answers are the evaluator's."""
    return sum(a == b for a, b in zip(texts, of_run.evaluated, strict=True))
