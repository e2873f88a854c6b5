"""A language model as judge of open answers, through any OpenAI-compatible server.

Rows that such a judge scored compare only with rows that one scored. Verdicts are cached beside
the answers file, so that a second call costs nothing and gives the same numbers.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvqa.config.errors import UserError
from medvqa.data.example import Prediction, Score
from medvqa.evaluation.comparison import run_mean
from medvqa.evaluation.endpoint import cached_replies, complete
from medvqa.evaluation.protocols.protocol import Protocol, Types, is_closed, item_values

QUESTION = (
    "You grade an answer to a medical question about an image.\n"
    "Question: {question}\nReference answer: {reference}\nGiven answer: {answer}\n"
    "Does the given answer say the same as the reference answer, in whatever words? "
    "Reply with one word: correct or incorrect."
)
VERDICT = re.compile(r"\b(not correct|incorrect|correct)\b")


@dataclass(frozen=True)
class Judge:
    """Where the judge answers, and where its verdicts are kept."""

    endpoint: str
    model: str
    cache: Path

    def verdicts(self, predictions: Sequence[Prediction]) -> list[bool | None]:
        """Return whether each answer is right; None if the judge's reply says neither.

        Raises:
            UserError: If the server cannot be reached or refuses.
        """
        prompts = [
            QUESTION.format(
                question=p.question, reference=" or ".join(p.references), answer=p.prediction
            )
            for p in predictions
        ]
        keys = [hashlib.sha256(f"{self.model}\n{p}".encode()).hexdigest() for p in prompts]
        questions = dict(zip(keys, prompts, strict=True))
        rows = cached_replies(
            self.cache, questions, self._ask, key="key", description=f"asking {self.model}"
        )
        return [_verdict(rows[key]["reply"]) for key in keys]

    def scores(
        self, protocol: Protocol, predictions: Sequence[Prediction], types: Types
    ) -> tuple[dict[str, Score], list[str]]:
        """Return the judge's metrics, and a remark on how often the protocol's rule agrees.

        Open answers are judged, closed ones keep the protocol's rule.
        """
        opened = [p for p in predictions if not is_closed(p, types)]
        verdicts = self.verdicts(opened)
        by_place = iter(verdicts)
        items = item_values(protocol, predictions, types)
        totals = [
            item["close acc"] if is_closed(p, types) else float(bool(next(by_place)))
            for p, item in zip(predictions, items, strict=True)
        ]
        columns = {
            "open acc (judge)": ([float(bool(verdict)) for verdict in verdicts], opened),
            "total acc (judge)": (totals, predictions),
        }
        scores = {
            name: run_mean(values, [p.cluster for p in rows])
            for name, (values, rows) in columns.items()
            if rows
        }
        rules = [own for p, own in zip(predictions, items, strict=True) if not is_closed(p, types)]
        return scores, [agreement(verdicts, rules, "em")] if opened else []

    def _ask(self, prompt: str) -> dict[str, str]:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
        }
        return {"reply": str(complete(self.endpoint, body)[0]["message"]["content"])}


def parse_judge(pairs: Sequence[str], file: Path) -> Judge:
    """Return the judge of `--judge endpoint=URL model=NAME`; verdicts stay beside the file."""
    values = dict(pair.partition("=")[::2] for pair in pairs)
    if set(values) != {"endpoint", "model"} or not all(values.values()):
        raise UserError("--judge needs endpoint=URL and model=NAME, both of the judge's server")
    return Judge(values["endpoint"], values["model"], file.with_name(f"{file.name}.judge.jsonl"))


def _verdict(reply: str) -> bool | None:
    verdicts = VERDICT.findall(reply.lower())
    return verdicts[-1] == "correct" if verdicts else None


def agreement(
    verdicts: Sequence[bool | None], values: Sequence[Mapping[str, Any]], metric: str
) -> str:
    """Return how often judge and rule agree on open answers, with Cohen's kappa."""
    pairs = [(bool(v), row[metric] == 1) for v, row in zip(verdicts, values, strict=True)]
    observed = sum(a == b for a, b in pairs) / len(pairs)
    judge, rule = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    chance = judge * rule + (1 - judge) * (1 - rule)
    kappa = (observed - chance) / (1 - chance) if chance < 1 else 1.0
    unclear = sum(verdict is None for verdict in verdicts)
    return (
        f"the judge and {metric} agree on {observed:.1%} of {len(pairs)} open answers (Cohen's "
        f"kappa {kappa:.2f}); the judge takes {judge:.1%} as right, the rule {rule:.1%}; "
        f"{unclear} replies said neither and count as wrong"
    )
