"""Predictions of many runs on one set -> a compact form: each text and each answer stored once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medvqa.evaluation.score import SHOWN
from medvqa.report.arms import Arm
from medvqa.report.runs import Answers, Question, Run

# The baselines that every run of a model repeats are one column.
SHARED_PHASES = ("majority", "zero_shot")
DIGITS = 4


@dataclass(frozen=True)
class Column:
    """The answers of one run in one phase."""

    arm: Arm
    run: Run
    answers: Answers


def columns_of(arms: Sequence[Arm], set_name: str) -> list[Column]:
    """Return what the browser can show side by side: final, blind, and each baseline once."""
    found: list[Column] = []
    seen = set()
    for phase in ("final", "blind", *SHARED_PHASES):
        for arm in arms:
            for run in arm.runs:
                answers = run.answered(phase, set_name)
                if answers is None:
                    continue
                key = (arm.model, phase, answers.questions, answers.texts)
                if phase not in SHARED_PHASES or key not in seen:
                    found.append(Column(arm, run, answers))
                seen.add(key)
    return found


class Texts:
    """Texts by number, each stored once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """Return the text's number."""
        return self._numbers.setdefault(text, len(self._numbers))

    def all(self) -> list[str]:
        """Return the texts in the order of their numbers."""
        return list(self._numbers)


def encode(
    arms: Sequence[Arm], set_name: str, shown: Mapping[str, tuple[str, ...]], pictures: Texts
) -> dict[str, Any]:
    """Return one set's predictions for the page.

    A question's different answers are listed once with their scores, which depend on nothing else;
    a column then is one small number a question, -1 where it was not asked.

    Args:
        arms: In the page's order.
        set_name: Set.
        shown: Cluster -> pictures.
        pictures: Numbers of the pictures, shared by all sets.
    """
    columns = columns_of(arms, set_name)
    texts = Texts()
    order: dict[Question, int] = {}
    for column in columns:
        for question in column.answers.questions:
            order.setdefault(question, len(order))
    options: list[dict[tuple[Any, ...], int]] = [{} for _ in order]
    codes = [list(_codes(column.answers, order, options, texts)) for column in columns]
    return {
        "name": set_name,
        "questions": [
            [
                question.id,
                texts.number(question.text),
                [texts.number(reference) for reference in question.references],
                question.answer_type,
                texts.number(question.source),
                texts.number(question.split),
                [pictures.number(key) for key in shown.get(question.cluster, ())],
            ]
            for question in order
        ],
        "options": [list(of_question) for of_question in options],
        "columns": [
            {
                "arm": column.arm.name,
                "phase": column.answers.phase,
                "seed": column.run.seed,
                "run": str(column.run.directory),
                "codes": column_codes,
            }
            for column, column_codes in zip(columns, codes, strict=True)
        ],
        "metrics": list(SHOWN),
        "texts": texts.all(),
    }


def _codes(
    answers: Answers,
    order: Mapping[Question, int],
    options: Sequence[dict[tuple[Any, ...], int]],
    texts: Texts,
) -> Iterator[int]:
    """Yield the number of the run's answer among the answers to each question, in `order`."""
    rows = {question: row for row, question in enumerate(answers.questions)}
    scores = {metric: values.tolist() for metric, values in answers.scores.items()}
    for question, place in order.items():
        row = rows.get(question)
        if row is None:
            yield -1
            continue
        values = (_rounded(scores[metric][row]) for metric in SHOWN)
        answer = (texts.number(answers.texts[row]), *values)
        yield options[place].setdefault(answer, len(options[place]))


def _rounded(value: float) -> float | int | None:
    """Return a short form of the score; None where the metric does not apply."""
    if value != value:  # NaN
        return None
    short = round(value, DIGITS)
    return int(short) if short == int(short) else short
