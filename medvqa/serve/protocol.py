"""OpenAI's chat completions <-> our questions and answers; what is not supported is refused.

A field is taken, or holds a value that changes nothing (`n: 1`), or is an error. A lenient server
ignores what clients always send, and its response lists what was ignored.
"""

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from medvqa.models.prompt import question_of
from medvqa.serve.answering import Reply
from medvqa.serve.errors import RequestError, sendable
from medvqa.serve.intake import Intake, Question

# The values of a field that change no answer: decoding is greedy, one answer, no tools.
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
# Greedy answers need no seed, and no record names the client.
WITHOUT_EFFECT = ("seed", "user", "metadata")
# Another value asks for another form of response, which no server may ignore.
NEVER_IGNORED = ("n", "logprobs", "tool_choice", "response_format", "modalities")
ONE_MESSAGE = (
    "send exactly one message, of the user. The model was trained on single questions, without "
    "system prompt or history. `medvqa serve --lenient` answers the last question alone."
)
LENIENT_NOTE = "greedy answer to the last question alone; what `ignored` lists had no effect"
SERVER_READS_NOTHING = (
    "send pictures as data:image/<type>;base64,... URLs: the server reads no file and fetches "
    "nothing"
)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request that passed.

    Attributes:
        has_usage: Whether a stream ends with the number of tokens.
        ignored: Fields and messages without effect; a strict server has none.
    """

    question: Question
    is_stream: bool
    has_usage: bool
    ignored: tuple[str, ...] = ()


def read_request(data: bytes, *, model: str, intake: Intake, is_lenient: bool = False) -> Request:
    """Return the question of a request's body; reads its pictures and checks their headers.

    Raises:
        RequestError: On the first thing that is wrong or not supported, naming the field.
        ToolError: If the intake refuses the question or a picture.
    """
    body = _object(data)
    ignored = _ignored_fields(body, is_lenient)
    if body.get("model") != model:
        message = f"model {body.get('model')!r:.200} is not served here; it is {model!r}"
        raise RequestError(message, "model_not_found", "model", status=404)
    content, ignored_messages = _last_question(body.get("messages"), is_lenient)
    text, urls, ignored_parts = _content(content, is_lenient)
    question = intake.accept(question_of(text), urls)
    is_stream, has_usage = _stream_settings(body)
    return Request(
        question=replace(question, max_new_tokens=_max_tokens(body)),
        is_stream=is_stream,
        has_usage=has_usage,
        ignored=(*ignored, *ignored_messages, *ignored_parts),
    )


def _object(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RequestError("the body is no JSON", "invalid_json") from error
    if not isinstance(body, dict):
        raise RequestError("the body is no JSON object", "invalid_json")
    return body


def _ignored_fields(body: Mapping[str, Any], is_lenient: bool) -> list[str]:
    """Return the fields without effect; raise on one that may not be ignored."""
    ignored = []
    for name, value in body.items():
        if value is None or name in TAKEN or name in WITHOUT_EFFECT:
            continue
        if value in NEUTRAL.get(name, ()):
            continue
        if is_lenient and name not in NEVER_IGNORED:
            ignored.append(sendable(name))
        elif name not in NEUTRAL:
            raise RequestError(f"{name} is not supported", "unsupported_parameter", name)
        else:
            allowed = " or ".join(json.dumps(known) for known in NEUTRAL[name])
            message = f"{name} is supported as {allowed} only: one greedy answer, no tools"
            raise RequestError(message, "unsupported_value", name)
    return ignored


def _stream_settings(body: Mapping[str, Any]) -> tuple[bool, bool]:
    """Return whether the response is a stream, and whether the number of tokens ends it."""
    is_stream, options = body.get("stream") or False, body.get("stream_options") or {}
    if not isinstance(is_stream, bool):
        raise RequestError("stream must be true or false", "invalid_type", "stream")
    if not isinstance(options, dict):
        raise RequestError("stream_options must be an object", "invalid_type", "stream_options")
    return is_stream, options.get("include_usage") is True


def _max_tokens(body: Mapping[str, Any]) -> int | None:
    names = ("max_tokens", "max_completion_tokens")
    limits = {name: body[name] for name in names if body.get(name) is not None}
    if len(limits) == 2:
        raise RequestError("give one limit of tokens", "invalid_value", "max_tokens")
    for name, value in limits.items():
        if type(value) is not int or value < 1:
            raise RequestError(f"{name} must be a whole number above 0", "invalid_value", name)
    return next(iter(limits.values()), None)


def _last_question(messages: Any, is_lenient: bool) -> tuple[Any, list[str]]:
    """Return the content of the user's last message, and which messages are ignored."""
    is_list = isinstance(messages, list) and all(isinstance(m, dict) for m in messages)
    roles = [message.get("role") for message in messages] if is_list else []
    if "user" not in roles or (len(roles) > 1 and not is_lenient):
        raise RequestError(ONE_MESSAGE, "unsupported_messages", "messages")
    last = len(roles) - 1 - roles[::-1].index("user")
    ignored = [
        f"messages[{place}] ({sendable(str(role))[:20]})"
        for place, role in enumerate(roles)
        if place != last
    ]
    return messages[last].get("content"), ignored


def _content(content: Any, is_lenient: bool) -> tuple[str, list[str], list[str]]:
    """Return text, image URLs and ignored settings; pictures come first whatever the order."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise _wrong_content("content must be a text or a list of parts")
    texts, urls, ignored = [], [], []
    for part in parts:
        if part.get("type") == "text":
            if not isinstance(part.get("text"), str):
                raise _wrong_content("a text part has no text")
            texts.append(part["text"])
        elif part.get("type") == "image_url":
            url, detail = _url(part.get("image_url"))
            urls.append(url)
            ignored += ["detail"] * (detail not in (None, "auto"))
        else:
            raise _wrong_content("a part is neither text nor image_url", "unsupported_content")
    if ignored and not is_lenient:
        message = 'detail is supported as "auto" only: the run sets the pixel budget'
        raise _wrong_content(message, "unsupported_value")
    return "\n".join(texts), urls, ignored


def _url(image: Any) -> tuple[str, Any]:
    """Return a picture's address and the detail in which it shall be seen."""
    is_object = isinstance(image, dict)
    url, detail = (image.get("url"), image.get("detail")) if is_object else (image, None)
    if not isinstance(url, str):
        raise _wrong_content("an image_url part has no url")
    if not url.startswith("data:"):
        raise _wrong_content(SERVER_READS_NOTHING, "image_not_allowed")
    return url, detail


def _wrong_content(message: str, code: str = "invalid_type") -> RequestError:
    return RequestError(message, code, "messages")


def completion(answer: Reply, *, model: str, ignored: Sequence[str] = ()) -> dict[str, Any]:
    """Return the response of a request without a stream."""
    message = {"role": "assistant", "content": answer.text}
    choice = {"index": 0, "message": message, "logprobs": None}
    choice["finish_reason"] = _finish_reason(answer)
    head = _head("chat.completion", model, answer, ignored)
    return {**head, "choices": [choice], **_usage(answer)}


def stream(
    answer: Reply, *, model: str, has_usage: bool, ignored: Sequence[str] = ()
) -> Sequence[str]:
    """Return the server-sent events: the whole answer in one, its end, the tokens if requested.

    Questions are answered in batches, and a few tokens each: there is nothing to show earlier.
    """
    head = _head("chat.completion.chunk", model, answer, ignored)
    delta = {"role": "assistant", "content": answer.text}
    end = {"index": 0, "delta": {}, "finish_reason": _finish_reason(answer)}
    chunks: list[dict[str, Any]] = [
        {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
        {**head, "choices": [end]},
    ]
    if has_usage:
        chunks.append({**head, "choices": [], **_usage(answer)})
    return [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"]


def _head(kind: str, model: str, answer: Reply, ignored: Sequence[str]) -> dict[str, Any]:
    head: dict[str, Any] = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }
    notes: dict[str, Any] = {}
    if answer.confidence is not None:
        notes |= {"confidence": answer.confidence, "abstained": answer.has_abstained}
    if ignored:
        notes |= {"ignored": list(ignored), "note": LENIENT_NOTE}
    return {**head, "medvqa": notes} if notes else head


def _finish_reason(answer: Reply) -> str:
    return "length" if answer.cut else "stop"


def _usage(answer: Reply) -> dict[str, dict[str, int]]:
    if not answer.num_tokens:
        return {}  # a program behind us did not say
    usage = {
        "prompt_tokens": answer.num_prompt_tokens,
        "completion_tokens": answer.num_tokens,
        "total_tokens": answer.num_prompt_tokens + answer.num_tokens,
    }
    return {"usage": usage}
