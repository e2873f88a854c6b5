"""One question, one answer, whoever is asked: evaluator, process, server, merged model.

    python benchmarks/serving_parity.py --data DIR            trains a tiny run first, then all 451
    python benchmarks/serving_parity.py --data DIR --run RUN  of a run on VQA-RAD that is there

The run's own predictions.jsonl is the reference. Exits with 1 if a single answer differs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving import CLIENTS, ROOT, ask_all, request_body, running_server
from medvqa.config import SourceConfig
from medvqa.data import load_examples
from medvqa.example import Example
from medvqa.record import read_lines
from medvqa.serve.answering import Answerer, Question

STEPS = 60


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


def over_http(directory: Path, examples: Sequence[Example], log: Path) -> list[str]:
    """Return the answers of `medvqa serve`, asked by 16 clients at once."""
    with running_server(directory, log) as server:
        bodies = [request_body(example, server.model) for example in examples]
        texts, _, _ = ask_all(server, bodies, num_clients=CLIENTS)
    return texts


def compare(run: Path, data: str, scratch: Path) -> dict[str, Any]:
    """Return, for each way to ask, how many answers equal the evaluator's."""
    of_run = asked(run, data)
    merged = scratch / "merged"
    call("-m", "medvqa.cli", "export", str(run), "--merge", "--out", str(merged))
    ways = {
        "in_process": in_process(run, of_run.examples),
        "server": over_http(run, of_run.examples, scratch / "server.log"),
        "merged": in_process(merged, of_run.examples),
        "server_of_merged": over_http(merged, of_run.examples, scratch / "merged.log"),
        # Not a way to ask: were it equal, the equalities above would say nothing of the adapter.
        "base_without_adapter": list(of_run.zero_shot),
    }
    return {
        "num_questions": len(of_run.examples),
        "num_different_answers": len(set(of_run.evaluated)),
        "equal_to_the_evaluator": {
            name: sum(a == b for a, b in zip(texts, of_run.evaluated, strict=True))
            for name, texts in ways.items()
        },
    }


def train(run: Path, data: str) -> None:
    """Train the tiny model on VQA-RAD and evaluate it on all test questions."""
    call(
        *("train.py", f"hydra.run.dir={run}", "data=vqa_rad", f"data.path={data}"),
        *("tracking=disabled", f"training.max_steps={STEPS}", "evaluation.after_each_stage=false"),
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
    counts.pop("base_without_adapter")
    sys.exit(any(count < result["num_questions"] for count in counts.values()))


if __name__ == "__main__":
    main()
