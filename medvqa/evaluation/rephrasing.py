"""Other wordings of a question; a model that is sure of its answer gives it to all of them."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from medvqa.config.evaluation import Normalizer
from medvqa.data.example import Example, Prediction
from medvqa.evaluation.choice import read_choice
from medvqa.evaluation.generate import Answer
from medvqa.evaluation.metrics import exact_match
from medvqa.evaluation.probes import EXISTS

PHASES = ("zero_shot", "final")
OF_EXISTENCE = ("Can you see {rest}?", "Does the picture show {rest}?")  # "Is there {rest}?"
OF_ANY = (
    "Look at the picture. {question}",
    "{question} Answer from the picture.",
    "Please answer this question: {question}",
    "I would like to know: {question}",
    "Question about the picture: {question}",
    "Consider what the picture shows. {question}",
    "{question} What does the picture tell you?",
    "Here is a picture and a question. {question}",
)


def rephrased(example: Example, count: int) -> list[Example]:
    """Return the example with `count` other wordings of its question, at most 8."""
    text = " ".join(example.question.split())
    match = EXISTS.fullmatch(text)
    special = [form.format(rest=match[2]) for form in OF_EXISTENCE] if match else []
    texts = [*special, *(form.replace("{question}", text) for form in OF_ANY)][:count]
    return [
        replace(example, id=f"{example.id}|rephrased_{number}", question=own)
        for number, own in enumerate(texts, start=1)
    ]


def all_rephrased(examples: Sequence[Example], count: int) -> list[Example]:
    """Return all rephrasings, question by question."""
    return [own for example in examples for own in rephrased(example, count)]


def with_rephrased(answers: Sequence[Answer], num_questions: int) -> list[Answer]:
    """Return the first answers, each with its equal share of the rest: those to rephrasings."""
    count = len(answers) // num_questions - 1
    rest = iter(answer.text for answer in answers[num_questions:])
    return [replace(a, rephrased=tuple(islice(rest, count))) for a in answers[:num_questions]]


def agreement(prediction: Prediction, normalizer: Normalizer) -> float | None:
    """Return the share of rephrasings that got the prediction's answer; None without any."""
    if not prediction.rephrased:
        return None
    if prediction.options:
        place = read_choice(prediction.prediction, prediction.options).place
        same = [read_choice(t, prediction.options).place == place for t in prediction.rephrased]
    else:
        answer = [prediction.prediction]
        same = [exact_match(text, answer, normalizer) for text in prediction.rephrased]
    return sum(same) / len(same)
