"""The conversation in a row's cell -> its questions and answers."""

from collections.abc import Mapping
from typing import Any

from medvqa.config.errors import UserError, about
from medvqa.data.rows import parsed, without_markers

ASKS = ("human", "user")
ANSWERS = ("gpt", "assistant")


def turns(value: object, *, num_images: int = 1) -> list[tuple[str, str]]:
    """Return the pairs of question and answer, without `<image>` markers.

    A message is `{from, value}` or `{role, content}`; a content may be a list of parts, of which
    the texts count. The list may be a text, as JSON or as Python prints it. A system message in
    front is left out.

    Raises:
        UserError: If that is no conversation, a question lacks its answer, or a message has
            markers, but not one per image.
    """
    with about("conversations"):
        messages = []
        for n, message in enumerate(_listed(value)):
            with about(f"message {n}"):
                messages.append(_message(message))
        if messages and messages[0][0] == "system":
            messages = messages[1:]
        speakers = [speaker for speaker, _ in messages]
        if not messages or any(
            speaker not in (ANSWERS if n % 2 else ASKS) for n, speaker in enumerate(speakers)
        ):
            spoken = ", ".join(speakers) or "nobody"
            raise UserError(f"question and answer must take turns; it has {spoken}")
        if len(messages) % 2:
            raise UserError("has no answer to its last question")
        texts = [
            without_markers(f"message {n}", text, num_images=num_images)
            for n, (_, text) in enumerate(messages)
        ]
        for n, text in enumerate(texts):
            if not text:
                raise UserError(f"has no {'answer' if n % 2 else 'question'} in turn {n // 2}")
    return list(zip(texts[::2], texts[1::2], strict=True))


def _listed(value: object) -> list[Any]:
    if isinstance(value, str):
        value = parsed(value, "is no list of messages")
    if not isinstance(value, list):
        raise UserError(f"is no list of messages but {type(value).__name__}")
    return value


def _message(message: object) -> tuple[str, str]:
    """Return the speaker and the text."""
    if not isinstance(message, Mapping):
        raise UserError(f"is {type(message).__name__}, not {{from, value}}")
    for speaker, content in (("from", "value"), ("role", "content")):
        if message.get(speaker) is not None:
            return str(message[speaker]), _text(message.get(content))
    raise UserError(f"has neither from and value nor role and content; it has {', '.join(message)}")


def _text(content: object) -> str:
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        content = "\n".join(part for part in parts if isinstance(part, str))
    if content is not None and not isinstance(content, str):
        raise UserError(f"is {type(content).__name__}, not a text: {content!r:.80}")
    return content or ""
