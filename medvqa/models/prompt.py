"""Example -> chat messages: the only prompt text, for training, evaluation and serving."""

from typing import Any

INSTRUCTION = "Answer with a word or a short phrase."

Message = dict[str, Any]


def user_message(question: str, *, num_images: int) -> Message:
    """Return the user's turn: the images first, then the question and how to answer it."""
    images: list[dict[str, str]] = [{"type": "image"}] * num_images
    return {
        "role": "user",
        "content": [*images, {"type": "text", "text": f"{question.strip()}\n{INSTRUCTION}"}],
    }


def question_of(text: str) -> str:
    """Return the question of a user's text: a client may send the whole prompt or the question."""
    return text.strip().removesuffix(INSTRUCTION).strip()
