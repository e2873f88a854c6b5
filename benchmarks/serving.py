"""One question, one answer, whoever is asked; and how many questions `medvqa serve` answers.

    python -m benchmarks.serving parity --data DIR [--run RUN]
    python -m benchmarks.serving load --data DIR --run RUN [--against CHECKOUT]

`parity` asks all test questions of VQA-RAD of the evaluator, the model in process, the tool, the
server, and the merged model; without a run it trains the tiny model first. The run's own
predictions.jsonl is the reference. It exits with 1 if a single answer differs.

`load` asks the same questions with 32 clients and with one, in alternating rounds after one round
that warms up. With --against, 32 clients ask the servers of this checkout and of another one, which
must be able to read the run.
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

from benchmarks.runs import BARE, ROOT, Row, call, parser_of, provenance, train
from medvqa.config.data import SourceConfig
from medvqa.data.example import Example, ImageSource
from medvqa.data.pool import load_examples
from medvqa.serve.answering import Answerer, Question
from medvqa.serve.tool import DISCLAIMER, EMPTY, build
from medvqa.serve.tool_config import Service, ToolConfig
from medvqa.tracking.record import read_json, read_lines, write_json

CLIENTS = 32
QUANTILES = (50, 90, 95, 99)
START_TIMEOUT_S = 300
# Enough to change nearly every answer, too little for the same answer to all questions.
TRAINED = ("training.max_steps=30", "training.learning_rate=3e-4")
MIN_DIFFERENT_ANSWERS = 5  # below it, equal answers show nothing


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


# --- Load ----------------------------------------------------------------------------------------


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


# --- Parity --------------------------------------------------------------------------------------


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


def parity(options: argparse.Namespace) -> Row:
    """Return, for each way to ask, how many answers equal the evaluator's."""
    with tempfile.TemporaryDirectory() as place:
        run, merged = options.run, Path(place) / "merged"
        if run is None:
            data = ("data=vqa_rad", f"data.path='{Path(options.data).resolve()}'")
            extra = ("evaluation.zero_shot=true", "evaluation.bootstrap_samples=200")
            run = train(Path(place) / "run", *data, *TRAINED, *BARE, *extra).directory
        of_run = asked(run, options.data)
        examples = of_run.examples
        export = ["-m", "medvqa.cli", "export", str(run.resolve()), "--merge", "--out", str(merged)]
        call(export, Path(place) / "export.log")
        ways = {
            "in_process": in_process(run, examples),
            "tool_in_process": by_tool(ToolConfig(run=str(run)), examples),
            "merged_in_process": in_process(merged, examples),
        }
        with running_server(run, Path(place) / "server.log") as server:
            ways["server"] = ask_all(server, examples)[0]
            ways["tool_over_server"] = by_tool(of_endpoint(server, run), examples)
        with running_server(merged, Path(place) / "merged.log") as server:
            ways["server_of_merged"] = ask_all(server, examples)[0]
    num_different, num_questions = len(set(of_run.evaluated)), len(examples)
    if equal(of_run.zero_shot, of_run) > num_questions / 2 or num_different < MIN_DIFFERENT_ANSWERS:
        sys.exit("the run's answers are too few or too close to the base's to show anything")
    return {
        "num_questions": num_questions,
        "num_different_answers": num_different,
        "base_without_adapter": equal(of_run.zero_shot, of_run),
        "equal_to_the_evaluator": {name: equal(texts, of_run) for name, texts in ways.items()},
    }


def main() -> int:
    """Measure one of both and write the record; 1 if an answer differs."""
    parser = parser_of(__doc__)
    parser.add_argument("what", choices=("parity", "load"))
    parser.add_argument("--data", required=True, help="VQA-RAD as its authors publish it")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--requests", type=int, default=160, help="questions per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another version's tree")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.what == "load" and options.run is None:
        parser.error("load needs --run")
    result = parity(options) if options.what == "parity" else load(options)
    name = {"parity": "serving_parity", "load": "serving"}[options.what]
    write_json(options.out or ROOT / f"benchmarks/results/{name}.json", {**provenance(), **result})
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    counts = result.get("equal_to_the_evaluator", {}).values()
    return int(any(count < result["num_questions"] for count in counts))


if __name__ == "__main__":
    sys.exit(main())
