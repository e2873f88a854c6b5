"""One question, one answer, whoever is asked: evaluator, process, tool, server, merged model.

    python -m benchmarks.serving_parity --data DIR            trains a tiny run first, then all 451
    python -m benchmarks.serving_parity --data DIR --run RUN  of a run on VQA-RAD that is there

The run's own predictions.jsonl is the reference. Exits with 1 if a single answer differs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving import (
    CLIENTS,
    ROOT,
    Server,
    ask_all,
    data_url,
    request_body,
    running_server,
)
from medvqa.config.data import SourceConfig
from medvqa.data.example import Example
from medvqa.data.pool import load_examples
from medvqa.serve.answering import Answerer, Question
from medvqa.serve.tool import DISCLAIMER, EMPTY, build
from medvqa.serve.tool_config import Service, ToolConfig
from medvqa.tracking.record import read_lines

# Enough to change nearly every answer, too little for the same answer to all questions.
STEPS, LEARNING_RATE = 30, 3e-4
MIN_DIFFERENT_ANSWERS = 5  # below it, equal answers show nothing


@dataclass(frozen=True)
class Asked:
    """The evaluation set and what the evaluator said, in its order."""

    examples: Sequence[Example]
    evaluated: Sequence[str]
    zero_shot: Sequence[str]


def asked(run: Path, data: str) -> Asked:
    """Return the run's own evaluation set and answers."""
    config = json.loads((run / "run.json").read_text())["config"]["data"]
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
    answerer = Answerer.of_run(directory)
    questions = [Question(text=e.question, images=e.images) for e in examples]
    return [answer.text for answer in answerer.answer(questions)]


def over_http(server: Server, examples: Sequence[Example]) -> list[str]:
    """Return the answers of `medvqa serve`, asked by many clients at once."""
    bodies = [request_body(example, server.model) for example in examples]
    return ask_all(server, bodies, num_clients=CLIENTS)[0]


def by_tool(config: ToolConfig, examples: Sequence[Example]) -> list[str]:
    """Return what the agent's tool says, without its notes."""
    tool = build(config)

    def ask(example: Example) -> str:
        urls = [data_url(image) for image in example.images]
        return spoken(tool.great_brain_specialist(example.question, urls))

    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(ask, examples))


def spoken(text: str) -> str:
    """Return the answer of a result of the tool."""
    lines = text.split("\n")
    while lines and (lines[-1] == DISCLAIMER or lines[-1].startswith("Note: ")):
        lines.pop()
    answer = "\n".join(lines)
    return "" if answer == EMPTY else answer


def of_endpoint(server: Server, run: Path) -> ToolConfig:
    """Return the tool's config for a server."""
    return ToolConfig(service=Service.openai, base_url=server.url, model=server.model, run=str(run))


def equal(texts: Sequence[str], of_run: Asked) -> int:
    """Return how many answers are the evaluator's."""
    return sum(a == b for a, b in zip(texts, of_run.evaluated, strict=True))


def compare(run: Path, data: str, scratch: Path) -> dict[str, Any]:
    """Return, for each way to ask, how many answers equal the evaluator's."""
    of_run = asked(run, data)
    examples = of_run.examples
    merged = scratch / "merged"
    call("-m", "medvqa.cli", "export", str(run), "--merge", "--out", str(merged))
    ways = {
        "in_process": in_process(run, examples),
        "tool_in_process": by_tool(ToolConfig(run=str(run)), examples),
        "merged_in_process": in_process(merged, examples),
    }
    with running_server(run, scratch / "server.log") as server:
        ways["server"] = over_http(server, examples)
        ways["tool_over_server"] = by_tool(of_endpoint(server, run), examples)
    with running_server(merged, scratch / "merged.log") as server:
        ways["server_of_merged"] = over_http(server, examples)
    # Not a way to ask: were it equal, the equalities above would say nothing of the adapter.
    ways["base_without_adapter"] = list(of_run.zero_shot)
    return {
        "num_questions": len(examples),
        "num_different_answers": len(set(of_run.evaluated)),
        "equal_to_the_evaluator": {name: equal(texts, of_run) for name, texts in ways.items()},
    }


def train(run: Path, data: str) -> None:
    """Train the tiny model on VQA-RAD and evaluate it on all test questions."""
    call(
        *("train.py", f"hydra.run.dir={run}", "data=vqa_rad", f"data.path={data}"),
        *(f"training.max_steps={STEPS}", f"training.learning_rate={LEARNING_RATE}"),
        *("tracking=disabled", "evaluation.after_each_stage=false"),
        "evaluation.bootstrap_samples=200",
    )


def call(*arguments: str) -> None:
    """Run Python from the root of the repository."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, check=True)


def main() -> None:
    """Compare, show and write the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="VQA-RAD as its authors publish it")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/serving_parity.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run = options.run or Path(scratch) / "run"
        if options.run is None:
            train(run, options.data)
        result = compare(run, options.data, Path(scratch))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    counts = dict(result["equal_to_the_evaluator"])
    num_questions = result["num_questions"]
    if (
        counts.pop("base_without_adapter") > num_questions / 2
        or result["num_different_answers"] < MIN_DIFFERENT_ANSWERS
    ):
        sys.exit("the run's answers are too few or too close to the base's to show anything")
    sys.exit(any(count < num_questions for count in counts.values()))


if __name__ == "__main__":
    main()
