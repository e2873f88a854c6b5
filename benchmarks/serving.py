"""Load test of `medvqa serve`: 32 clients against one that asks one question after the other.

    python -m benchmarks.serving RUN --data DIR
    python -m benchmarks.serving RUN --data DIR --against CHECKOUT

Both arms ask the same VQA-RAD questions in alternating rounds, after one round that warms up. With
--against, 32 clients ask the servers of this checkout and of another one, which must be able to
read the run.
"""

import argparse
import base64
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.runs import ROOT, Row, parser_of, provenance
from medvqa.config.data import SourceConfig
from medvqa.data.example import Example, ImageSource
from medvqa.data.pool import load_examples
from medvqa.tracking.record import write_json

CLIENTS = 32
QUANTILES = (50, 90, 95, 99)
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


def request_body(example: Example, model: str) -> Row:
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

    def ask(body: Row) -> tuple[str, float]:
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


def load(options: argparse.Namespace) -> Row:
    """Return rates of both arms."""
    source = SourceConfig(name="vqa_rad", path=options.data, split="test", limit=options.requests)
    examples = load_examples(source, seed=0)
    with tempfile.TemporaryDirectory() as place, ExitStack() as servers:
        start = partial(running_server, options.run)
        this = servers.enter_context(start(Path(place, "this.log")))
        arms = {"many_clients": (this, CLIENTS), "one_by_one": (this, 1)}
        if options.against is not None:
            other = start(Path(place, "other.log"), checkout=options.against.resolve())
            arms = {"this": (this, CLIENTS), "other": (servers.enter_context(other), CLIENTS)}
        return measure(arms, examples, options.rounds)


def measure(
    arms: Mapping[str, tuple[Server, int]], examples: Sequence[Example], rounds: int
) -> Row:
    """Return throughput, latency and processor time per arm; all answers must be equal."""
    import numpy as np

    warm = [ask_all(server, examples)[0] for server, _ in arms.values()]
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    walls: dict[str, list[float]] = {name: [] for name in arms}
    cpu_s = dict.fromkeys(arms, 0.0)
    for _ in range(rounds):
        for name, (server, num_clients) in arms.items():
            before = server.cpu_seconds
            texts, spent, wall_s = ask_all(server, examples, num_clients)
            if any(texts != expected for expected in warm):
                raise RuntimeError(f"{name}: an answer differs")
            seconds[name] += spent
            walls[name].append(wall_s)
            cpu_s[name] += server.cpu_seconds - before
    return {
        name: {
            "requests_per_s": round(len(seconds[name]) / sum(walls[name]), 2),
            "requests_per_s_by_round": [round(len(examples) / wall, 2) for wall in walls[name]],
            "latency_s": {f"p{q}": float(np.percentile(seconds[name], q)) for q in QUANTILES},
            "cpu_ms_per_request": round(1000 * cpu_s[name] / len(seconds[name]), 1),
        }
        for name in arms
    }


def batch_sizes(server: Server) -> list[int]:
    """Return how many questions each batch held, by the server's own log."""
    return [int(n) for n in re.findall(r"^answered (\d+) in", server.log.read_text(), re.M)]


def main() -> None:
    """Measure and write the record."""
    parser = parser_of(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True, help="VQA-RAD as its authors publish it")
    parser.add_argument("--requests", type=int, default=160, help="questions per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another version's tree")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/serving.json")
    options = parser.parse_args()
    arms = load(options)
    write_json(options.out, {**provenance(), "arms": arms})
    print(json.dumps(arms, indent=2))  # noqa: T201


if __name__ == "__main__":
    main()
