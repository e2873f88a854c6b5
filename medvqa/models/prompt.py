"""Example -> chat messages: the only prompt text, for training, evaluation and serving."""

from typing import Any

from medvqa.data.example import Example
from medvqa.data.image import load_rgb

INSTRUCTION = "Answer with a word or a short phrase."

Message = dict[str, Any]


def user_message(question: str, *, num_images: int) -> Message:
    """Return the user's turn: the images first, then the question and how to answer it."""
    images: list[dict[str, str]] = [{"type": "image"}] * num_images
    return {
        "role": "user",
        "content": [*images, {"type": "text", "text": f"{question.strip()}\n{INSTRUCTION}"}],
    }


def conversation(example: Example, *, answer_apart: bool) -> dict[str, Any]:
    """Return question and answer in the form that TRL's and Unsloth's collators document."""
    user = user_message(example.question, num_images=len(example.images))
    answer = {"role": "assistant", "content": [{"type": "text", "text": example.answers[0]}]}
    images = {"images": [load_rgb(image) for image in example.images]}
    if answer_apart:
        return {**images, "prompt": [user], "completion": [answer]}
    return {**images, "messages": [user, answer]}


def question_of(text: str) -> str:
    """Return the question of a user's text: a client may send the whole prompt or the question."""
    return text.strip().removesuffix(INSTRUCTION).strip()
