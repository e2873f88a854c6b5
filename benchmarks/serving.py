"""Load test of `medvqa serve`: 32 clients against one that asks one question after the other.

    python -m benchmarks.serving RUN --data DIR --out benchmarks/results/serving.json
    python -m benchmarks.serving RUN --data DIR --against CHECKOUT

Both arms ask the same VQA-RAD questions of the same server, in alternating rounds, after one
round that warms it up. The number of requests is bounded by --requests and --rounds. With
--against, the servers of this checkout and of another one run side by side, and 32 clients ask each
in alternating rounds. The run must be one that the other checkout can read.
"""

import argparse
import base64
import json
import os
import platform
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from medvqa.config.data import SourceConfig
from medvqa.data.example import Example, ImageSource
from medvqa.data.pool import load_examples

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = 32
QUANTILES = (0.5, 0.9, 0.95, 0.99)
START_TIMEOUT_S = 300


@dataclass
class Server:
    """A server as its own process."""

    process: "subprocess.Popen[str]"
    url: str
    model: str
    log: Path


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
    server: Server, bodies: Sequence[dict[str, Any]], *, num_clients: int
) -> tuple[list[str], list[float], float]:
    """Return answers, seconds of each request, and wall seconds; an error ends it."""
    import httpx

    local = threading.local()

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
        pairs = list(pool.map(ask, bodies))
    wall_s = time.perf_counter() - started
    return [text for text, _ in pairs], [seconds for _, seconds in pairs], wall_s


def measure(server: Server, bodies: Sequence[dict[str, Any]], *, rounds: int) -> dict[str, Any]:
    """Return both arms; their answers must be equal."""
    warm, _, _ = ask_all(server, bodies, num_clients=CLIENTS)
    arms: dict[str, list[tuple[list[float], float]]] = {"one_by_one": [], "many_clients": []}
    batches = len(batch_sizes(server))
    sizes: list[int] = []
    for _ in range(rounds):
        for name, num_clients in (("one_by_one", 1), ("many_clients", CLIENTS)):
            texts, seconds, wall_s = ask_all(server, bodies, num_clients=num_clients)
            if texts != warm:
                raise RuntimeError(f"{name}: the load has changed an answer")
            arms[name].append((seconds, wall_s))
            new = batch_sizes(server)[batches:]
            batches += len(new)
            if name == "many_clients":
                sizes += new
    result = {name: summary(measured) for name, measured in arms.items()}
    result["many_clients"]["mean_batch"] = round(sum(sizes) / len(sizes), 2)
    result["speedup"] = round(
        result["many_clients"]["requests_per_s"] / result["one_by_one"]["requests_per_s"], 2
    )
    return result


def against(run: Path, checkout: Path, examples: Sequence[Example], rounds: int) -> dict[str, Any]:
    """Return rates, latencies and processor time per request of both checkouts' servers."""
    logs = Path("serving.log").resolve(), Path("serving-other.log").resolve()
    with (
        running_server(run, logs[0]) as ours,
        running_server(run, logs[1], checkout=checkout.resolve()) as other,
    ):
        servers = {"other": other, "this": ours}
        bodies = {name: [request_body(example, server.model) for example in examples]
                  for name, server in servers.items()}  # fmt: skip
        warm = [ask_all(servers[name], bodies[name], num_clients=CLIENTS)[0] for name in servers]
        if warm[0] != warm[1]:
            raise RuntimeError("the two servers answer differently")
        arms: dict[str, list[tuple[list[float], float]]] = {name: [] for name in servers}
        spent = dict.fromkeys(servers, 0.0)
        for _ in range(rounds):
            for name, server in servers.items():
                before = cpu_seconds(server)
                _, seconds, wall_s = ask_all(server, bodies[name], num_clients=CLIENTS)
                arms[name].append((seconds, wall_s))
                spent[name] += cpu_seconds(server) - before
    num_requests = rounds * len(examples)
    return {
        name: {
            **summary(measured),
            "cpu_ms_per_request": round(1000 * spent[name] / num_requests, 1),
        }
        for name, measured in arms.items()
    }


def cpu_seconds(server: Server) -> float:
    """Return the processor time that the server has used."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def batch_sizes(server: Server) -> list[int]:
    """Return how many questions each batch held, by the server's own log."""
    return [int(n) for n in re.findall(r"^answered (\d+) in", server.log.read_text(), re.M)]


def summary(measured: Sequence[tuple[list[float], float]]) -> dict[str, Any]:
    """Return throughput and latency over all rounds of an arm."""
    seconds = sorted(second for round_, _ in measured for second in round_)
    wall_s = sum(wall for _, wall in measured)
    return {
        "num_requests": len(seconds),
        "wall_s": round(wall_s, 3),
        "requests_per_s": round(len(seconds) / wall_s, 2),
        "requests_per_s_by_round": [round(len(r) / wall, 2) for r, wall in measured],
        "latency_s": {
            **{
                f"p{100 * q:g}": round(seconds[min(int(q * len(seconds)), len(seconds) - 1)], 4)
                for q in QUANTILES
            },
            "max": round(seconds[-1], 4),
        },
    }


def main() -> None:
    """Run the load test and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True, help="VQA-RAD as its authors publish it")
    parser.add_argument("--requests", type=int, default=160, help="questions of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another version's tree")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/serving.json")
    options = parser.parse_args()
    source = SourceConfig(name="vqa_rad", path=options.data, split="test", limit=options.requests)
    examples = load_examples(source, seed=0)
    if options.against is not None:
        figures = against(options.run, options.against, examples, options.rounds)
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
        return
    log = Path("serving.log").resolve()
    with running_server(options.run, log) as server:
        bodies = [request_body(example, server.model) for example in examples]
        result = measure(server, bodies, rounds=options.rounds)
        described = _described(server)
    values = {
        "command": "python -m benchmarks.serving RUN --data DIR",
        "machine": {"cpus": os.cpu_count(), "load_1m": round(os.getloadavg()[0], 2)},
        "python": platform.python_version(),
        "packages": {n: metadata.version(n) for n in ("torch", "transformers", "uvicorn")},
        "model": described,
        "questions": f"vqa_rad test, {options.requests} of 451, seed 0",
        "rounds": options.rounds,
        **result,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(values, indent=2) + "\n")
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


def _described(server: Server) -> dict[str, Any]:
    import httpx

    (model,) = httpx.get(f"{server.url}/models", trust_env=False).json()["data"]
    names = ("base", "kind", "device", "dtype", "max_pixels", "max_new_tokens")
    return {name: model["medvqa"][name] for name in names}


if __name__ == "__main__":
    main()
