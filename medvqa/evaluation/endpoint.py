"""Answers of an OpenAI-compatible server to the questions that our models are asked."""

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from medvqa.config.errors import UserError
from medvqa.config.prompt import PromptConfig
from medvqa.data.example import Example, ImageSource
from medvqa.data.image import load_rgb
from medvqa.evaluation.generate import Answer
from medvqa.models.prompt import chat_request, question_text
from medvqa.tracking.progress import track
from medvqa.tracking.record import read_lines, write_lines

Question = TypeVar("Question")
NUM_REQUESTS = 8  # at once
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Endpoint:
    """A model behind a server.

    Attributes:
        url: Of the server, with or without `/chat/completions`.
        model: Name by which the server knows the model.
        prompt: What stands around each question.
    """

    url: str
    model: str
    prompt: PromptConfig
    max_new_tokens: int

    def answer(self, examples: Sequence[Example], cache: Path) -> list[Answer]:
        """Return the answers; those in the cache are not asked for again.

        Raises:
            UserError: If the server cannot be reached or refuses a question.
        """
        questions = {example.id: example for example in examples}
        replies = cached_replies(
            cache, questions, self._ask, key="id", description=f"asking {self.model}"
        )
        rows = [replies[example.id] for example in examples]
        columns = ("text", "cut", "num_tokens")
        return [Answer(**{name: row[name] for name in columns}) for row in rows]

    def _ask(self, example: Example) -> dict[str, Any]:
        body = chat_request(
            question_text(example),
            [_png(image) for image in example.images],
            model=self.model,
            max_new_tokens=self.max_new_tokens,
            prompt=self.prompt,
        )
        choice, usage = complete(self.url, body)
        return {
            "text": str(choice["message"]["content"] or "").strip(),
            "cut": choice.get("finish_reason") == "length",
            "num_tokens": int(usage.get("completion_tokens") or 0),
        }


def cached_replies(
    cache: Path,
    questions: Mapping[str, Question],
    ask: Callable[[Question], Mapping[str, Any]],
    *,
    key: str,
    description: str,
) -> dict[str, dict[str, Any]]:
    """Return the cache's rows by key; what it lacks is asked, and each reply written at once.

    Args:
        cache: JSON Lines, one row per reply.
        questions: By key.
        ask: Returns the columns of a reply.
        key: Name of the key's column.
        description: Of the progress bar.
    """
    rows = {row[key]: row for row in read_lines(cache)}
    missing = {name: question for name, question in questions.items() if name not in rows}
    if not missing:
        return rows
    write_lines(cache, rows.values())  # without the last line, where a kill has cut it off
    with cache.open("a", encoding="utf-8") as file, ThreadPoolExecutor(NUM_REQUESTS) as pool:
        replies = pool.map(ask, missing.values())
        for name, reply in zip(track(list(missing), description=description), replies, strict=True):
            rows[name] = {key: name, **reply}
            file.write(json.dumps(rows[name], ensure_ascii=False) + "\n")
            file.flush()
    return rows


def complete(url: str, body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the first choice and the usage of a chat completion.

    Raises:
        UserError: If the server cannot be reached, refuses, or answers with something else.
    """
    import httpx

    url = url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
    key = os.environ.get("OPENAI_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        response = httpx.post(url, json=body, headers=headers, timeout=TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError(f"{url} cannot be reached: {error}") from error
    if response.is_error:
        text = " ".join(response.text.split())[:300]
        raise UserError(f"{url} answered {response.status_code}: {text}")
    try:
        values = response.json()
        choice = values["choices"][0]
        assert isinstance(choice["message"], dict)
        return choice, values.get("usage") or {}
    except (ValueError, KeyError, IndexError, TypeError, AssertionError) as error:
        raise UserError(f"{url} sent no chat completion: {response.text[:200]!r}") from error


def _png(image: ImageSource) -> bytes:
    buffer = io.BytesIO()
    load_rgb(image).save(buffer, "PNG")
    return buffer.getvalue()
