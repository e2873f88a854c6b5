"""OpenAI's requests, strict and lenient: nothing is ignored without being named."""

import json
from dataclasses import replace

import pytest

from medvqa.serve.answering import Reply
from medvqa.serve.errors import RequestError
from medvqa.serve.intake import Intake, Limits
from medvqa.serve.protocol import completion, read_request, stream
from tests.unit.serve.test_intake import PNG, data_url

ANSWER = Reply(text="left lung", cut=False, num_tokens=3, num_prompt_tokens=9)
SYSTEM = {"role": "system", "content": "You are a radiologist."}
CHAT = [
    SYSTEM,
    {"role": "user", "content": "Is there a mass?"},
    {"role": "assistant", "content": "no"},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Where is the nodule?"},
            {"type": "image_url", "image_url": {"url": data_url(PNG), "detail": "high"}},
        ],
    },
]


def read(is_lenient, **fields):
    body = {"model": "m", "messages": [{"role": "user", "content": "Why?"}], **fields}
    intake = Intake([], Limits())
    data = json.dumps(body).encode()
    return read_request(data, model="m", intake=intake, is_lenient=is_lenient)


FRONT_END = [
    ({"temperature": 0.7, "top_p": 0.9}, ("temperature", "top_p")),
    ({"messages": [SYSTEM, {"role": "user", "content": "Why?"}]}, ("messages[0] (system)",)),
    ({"stop": ["\n"], "chat_id": "x"}, ("stop", "chat_id")),
    ({"tools": [{"type": "function"}]}, ("tools",)),
]


@pytest.mark.parametrize(("fields", "ignored"), FRONT_END)
def test_what_front_ends_send_is_refused_unless_the_server_is_lenient(fields, ignored):
    with pytest.raises(RequestError):
        read(False, **fields)
    request = read(True, **fields)
    assert request.ignored == ignored
    assert request.question.text == "Why?"


def test_a_lenient_server_asks_the_last_question_alone_with_its_own_pictures():
    request = read(True, messages=CHAT)
    assert request.question.text == "Where is the nodule?"
    assert len(request.question.images) == 1
    named = ("messages[0] (system)", "messages[1] (user)", "messages[2] (assistant)", "detail")
    assert request.ignored == named


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"logprobs": True},
        {"response_format": {"type": "json_object"}},
        {"tool_choice": "required"},
        {"max_tokens": 0},
        {"messages": [SYSTEM]},
        {"messages": []},
        {"messages": [{"role": "user", "content": "Why?"}, "text"]},
        {"model": "other"},
    ],
)
def test_a_lenient_server_refuses_what_would_need_another_response(fields):
    with pytest.raises(RequestError):
        read(True, **fields)


def test_the_response_names_what_was_ignored_and_a_strict_one_has_nothing_to_name():
    assert "medvqa" not in completion(ANSWER, model="m")
    whole = completion(ANSWER, model="m", ignored=("temperature",))
    assert whole["medvqa"]["ignored"] == ["temperature"]
    assert "last question alone" in whole["medvqa"]["note"]
    first, *_ = stream(ANSWER, model="m", has_usage=False, ignored=("temperature",))
    assert json.loads(first.removeprefix("data: "))["medvqa"] == whole["medvqa"]


def test_a_calibrated_model_says_how_sure_it_is_and_that_it_abstained():
    unsure = replace(ANSWER, confidence=0.25, has_abstained=True)
    assert completion(unsure, model="m")["medvqa"] == {"confidence": 0.25, "abstained": True}
    first, *_ = stream(unsure, model="m", has_usage=False)
    assert json.loads(first.removeprefix("data: "))["medvqa"]["abstained"] is True
