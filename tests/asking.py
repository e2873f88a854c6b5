"""The ways to ask a run its evaluation questions, for tests that compare the answers."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving import CLIENTS, Server, data_url
from medvqa.config.data import SourceConfig
from medvqa.data.example import Example
from medvqa.data.pool import load_examples
from medvqa.serve.answering import Answerer
from medvqa.serve.intake import Question
from medvqa.serve.tool import DISCLAIMER, EMPTY, build
from medvqa.serve.tool_config import Service, ToolConfig
from medvqa.tracking.record import read_json, read_lines


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
