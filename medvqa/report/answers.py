"""Predictions of many runs on one set -> a compact form: each text and each answer stored once."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
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
    columns: dict[Hashable, Column] = {}
    for phase, arm in product(("final", "blind", *SHARED_PHASES), arms):
        for run in arm.runs:
            if answers := run.answered(phase, set_name):
                same = (arm.model, answers.questions, answers.texts)
                key = (phase, same if phase in SHARED_PHASES else run.directory)
                columns.setdefault(key, Column(arm, run, answers))
    return list(columns.values())


class Texts(dict[str, int]):
    """Text -> number; each text is stored once."""

    def number(self, text: str) -> int:
        """Return the text's number."""
        return self.setdefault(text, len(self))


def encode(
    arms: Sequence[Arm], set_name: str, shown: Mapping[str, tuple[str, ...]], pictures: Texts
) -> dict[str, Any]:
    """Return one set's predictions for the page.

    A question's different answers are listed once with their scores, which depend on nothing else.
    A column is then one small number per question, -1 where it was not asked.

    `shown` maps a cluster to its pictures, whose numbers all sets share.
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
        "texts": list(texts),
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
