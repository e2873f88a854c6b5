"""Example -> chat messages: the only prompt text, for training, evaluation and serving."""

import base64
import string
from collections.abc import Sequence
from typing import Any

from medvqa.config.prompt import QUESTION, Images, PromptConfig
from medvqa.data.example import Example
from medvqa.data.image import load_rgb

DEFAULT = PromptConfig()

Message = dict[str, Any]


def user_message(question: str, *, num_images: int, prompt: PromptConfig = DEFAULT) -> Message:
    """Return the user's turn: images and text in the prompt's order."""
    text = {"type": "text", "text": prompt.text.replace(QUESTION, question.strip())}
    images = [{"type": "image"}] * num_images
    is_first = prompt.images is Images.first
    return {"role": "user", "content": [*images, text] if is_first else [text, *images]}


def conversation(
    example: Example, *, answer_apart: bool, prompt: PromptConfig = DEFAULT
) -> dict[str, Any]:
    """Return question and answer in the form that TRL's and Unsloth's collators document."""
    num_images = len(example.images)
    user = user_message(question_text(example), num_images=num_images, prompt=prompt)
    answer = {"role": "assistant", "content": [{"type": "text", "text": example.answers[0]}]}
    images = {"images": [load_rgb(image) for image in example.images]}
    if answer_apart:
        return {**images, "prompt": [user], "completion": [answer]}
    return {**images, "messages": [user, answer]}


def chat_request(
    question: str,
    pngs: Sequence[bytes],
    *,
    model: str,
    max_new_tokens: int,
    prompt: PromptConfig = DEFAULT,
) -> dict[str, Any]:
    """Return the body of a greedy chat completion with the pictures as data URLs."""
    message = user_message(question, num_images=len(pngs), prompt=prompt)
    urls = iter(f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}" for png in pngs)
    content = [
        {"type": "image_url", "image_url": {"url": next(urls)}} if part["type"] == "image" else part
        for part in message["content"]
    ]
    messages = [{**message, "content": content}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": max_new_tokens}


def question_text(example: Example) -> str:
    """Return the question, and one line per option with its letter: "A. left lung"."""
    letters = zip(string.ascii_uppercase, example.options, strict=False)
    options = [f"{letter}. {option}" for letter, option in letters]
    return "\n".join([example.question.strip(), *options])


def question_of(text: str, prompt: PromptConfig = DEFAULT) -> str:
    """Return the question of a user's text: a client may send the whole prompt or the question."""
    before, _, after = (part.strip() for part in prompt.text.partition(QUESTION))
    return text.strip().removeprefix(before).removesuffix(after).strip()
