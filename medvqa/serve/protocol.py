"""OpenAI's chat completions <-> our questions and answers; what is not supported is refused.

A field is taken, or holds a value that changes nothing (`n: 1`), or is an error. Dropping one in
silence would answer another question than the one that was asked.
"""

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medvqa.models.prompt import question_of
from medvqa.serve.answering import Answer, Question
from medvqa.serve.errors import ToolError
from medvqa.serve.intake import Intake

# What a field may hold without changing an answer: decoding is greedy, one answer, no tools.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "temperature": (0,),
    "top_p": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logprobs": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "stop": ([],),
    "logit_bias": ({},),
    "store": (False,),
    "modalities": (["text"],),
}
TAKEN = ("model", "messages", "max_tokens", "max_completion_tokens", "stream", "stream_options")
# Greedy answers need no seed, and nobody is told who asks.
WITHOUT_EFFECT = ("seed", "user", "metadata")


class RequestError(Exception):
    """A request that is not answered, in the words of OpenAI's error object."""

    def __init__(
        self, message: str, code: str, param: str | None = None, *, status: int = 400
    ) -> None:
        super().__init__(message)
        self.status = status
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body = {
            "error": {"message": message, "type": kind, "param": param, "code": code},
        }


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request that passed.

    Attributes:
        has_usage: Whether a stream ends with the number of tokens.
    """

    question: Question
    is_stream: bool
    has_usage: bool


def read_request(data: bytes, *, model: str, intake: Intake) -> Request:
    """Return the question of a request's body; reads and decodes its pictures.

    Raises:
        RequestError: On the first thing that is wrong or not supported, naming the field.
    """
    body = _object(data)
    _check_fields(body)
    if body.get("model") != model:
        raise RequestError(
            f"model {body.get('model')!r} is not served here; it is {model!r}",
            "model_not_found",
            "model",
            status=404,
        )
    text, urls = _user_message(body.get("messages"))
    try:
        accepted = intake.accept(question_of(text), urls)
    except ToolError as error:
        raise RequestError(error.message, error.kind.value, "messages") from error
    options = body.get("stream_options") or {}
    return Request(
        question=Question(
            text=accepted.query, images=accepted.images, max_new_tokens=_max_tokens(body)
        ),
        is_stream=_flag(body, "stream"),
        has_usage=isinstance(options, dict) and options.get("include_usage") is True,
    )


def _object(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RequestError("the body is no JSON", "invalid_json") from error
    if not isinstance(body, dict):
        raise RequestError("the body is no JSON object", "invalid_json")
    return body


def _check_fields(body: Mapping[str, Any]) -> None:
    for name, value in body.items():
        if value is None or name in TAKEN or name in WITHOUT_EFFECT:
            continue
        if name not in NEUTRAL:
            raise RequestError(f"{name} is not supported", "unsupported_parameter", name)
        if value not in NEUTRAL[name]:
            allowed = " or ".join(json.dumps(known) for known in NEUTRAL[name])
            raise RequestError(
                f"{name} is supported as {allowed} only: one greedy answer, no tools",
                "unsupported_value",
                name,
            )


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name) or False
    if not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false", "invalid_type", name)
    return value


def _max_tokens(body: Mapping[str, Any]) -> int | None:
    limits = [name for name in ("max_tokens", "max_completion_tokens") if body.get(name)]
    if len(limits) == 2:
        raise RequestError("give one limit of tokens", "invalid_value", limits[0])
    name = limits[0] if limits else "max_tokens"
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int or value < 1:
        raise RequestError(f"{name} must be a whole number above 0", "invalid_value", name)
    return value


def _user_message(messages: Any) -> tuple[str, list[str]]:
    """Return text and image URLs of the one message; pictures come first whatever the order."""
    is_one = isinstance(messages, list) and len(messages) == 1 and isinstance(messages[0], dict)
    if not is_one or messages[0].get("role") != "user":
        raise RequestError(
            "send exactly one message, of the user: the model was trained on single questions, "
            "without system prompt or history",
            "unsupported_messages",
            "messages",
        )
    content = messages[0].get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise RequestError("content must be a text or a list of parts", "invalid_type", "messages")
    texts = [_text(part) for part in parts if part.get("type") == "text"]
    urls = [_url(part) for part in parts if part.get("type") == "image_url"]
    if len(texts) + len(urls) < len(parts):
        raise RequestError(
            "a part is neither text nor image_url", "unsupported_content", "messages"
        )
    return "\n".join(texts), urls


def _text(part: Mapping[str, Any]) -> str:
    if not isinstance(part.get("text"), str):
        raise RequestError("a text part has no text", "invalid_type", "messages")
    return str(part["text"])


def _url(part: Mapping[str, Any]) -> str:
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, dict) else image
    if not isinstance(url, str):
        raise RequestError("an image_url part has no url", "invalid_type", "messages")
    detail = image.get("detail", "auto") if isinstance(image, dict) else "auto"
    if detail != "auto":
        raise RequestError(
            'detail is supported as "auto" only: the pixel budget is the run\'s',
            "unsupported_value",
            "messages",
        )
    if not url.startswith("data:"):
        raise RequestError(
            "send pictures as data:image/<type>;base64,... URLs: the server reads no file and "
            "fetches nothing",
            "image_not_allowed",
            "messages",
        )
    return url


def completion(answer: Answer, *, model: str, num_prompt_tokens: int) -> dict[str, Any]:
    """Return the response of a request without a stream."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": answer.text},
        "logprobs": None,
        "finish_reason": _finish_reason(answer),
    }
    return {
        **_head("chat.completion", model),
        "choices": [choice],
        **_usage(answer, num_prompt_tokens),
    }


def stream(answer: Answer, *, model: str, num_prompt_tokens: int, has_usage: bool) -> Sequence[str]:
    """Return the server-sent events: the whole answer in one, its end, the tokens if wanted.

    Questions are answered in batches, and a few tokens each: there is nothing to show earlier.
    """
    head = _head("chat.completion.chunk", model)
    delta = {"role": "assistant", "content": answer.text}
    chunks: list[dict[str, Any]] = [
        {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
        {
            **head,
            "choices": [{"index": 0, "delta": {}, "finish_reason": _finish_reason(answer)}],
        },
    ]
    if has_usage:
        chunks.append({**head, "choices": [], **_usage(answer, num_prompt_tokens)})
    return [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"]


def _head(kind: str, model: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


def _finish_reason(answer: Answer) -> str:
    return "length" if answer.was_cut else "stop"


def _usage(answer: Answer, num_prompt_tokens: int) -> dict[str, dict[str, int]]:
    if not answer.num_tokens:
        return {}  # a program behind us did not say
    usage = {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": answer.num_tokens,
        "total_tokens": num_prompt_tokens + answer.num_tokens,
    }
    return {"usage": usage}
