"""The server: one answer whoever is asked, batches, refusals, and a graceful end."""

import asyncio
import base64
import io
import json
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI
from PIL import Image

from medvqa.config.errors import UserError
from medvqa.data.image import ImageBytes
from medvqa.models.trained import read_trained
from medvqa.serve.answering import Answerer
from medvqa.serve.command import main_serve
from medvqa.serve.engines import ProgramEngine
from medvqa.serve.intake import Question
from medvqa.serve.tool_config import ToolConfig
from tests.asking import (
    ask_all,
    asked,
    batch_sizes,
    by_tool,
    data_url,
    equal,
    in_process,
    of_endpoint,
    request_body,
    running_server,
)
from tests.conftest import NUM_QUESTIONS


@pytest.fixture(scope="module")
def of_run(vqa_rad_run, shared):
    return asked(vqa_rad_run, str(shared / "data" / "vqa_rad"))


@pytest.fixture(scope="module")
def server(vqa_rad_run, tmp_path_factory):
    with running_server(vqa_rad_run, tmp_path_factory.mktemp("server") / "log") as started:
        yield started


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url, timeout=120, trust_env=False) as opened:
        yield opened


@pytest.fixture
def body(of_run, server):
    return request_body(of_run.examples[0], server.model)


def test_evaluator_process_tool_server_and_merged_model_give_the_same_answers(
    vqa_rad_run, merged_model, server, of_run
):
    examples = of_run.examples
    ways = {
        "process": in_process(vqa_rad_run, examples),
        "merged": in_process(merged_model, examples),
        "server": ask_all(server, examples)[0],
        "tool": by_tool(ToolConfig(run=str(vqa_rad_run)), examples),
        "tool over server": by_tool(of_endpoint(server, vqa_rad_run), examples),
    }
    num_equal = {name: equal(texts, of_run) for name, texts in ways.items()}
    assert num_equal == dict.fromkeys(ways, NUM_QUESTIONS)
    # What is equal is the adapter's doing.
    assert equal(of_run.zero_shot, of_run) < NUM_QUESTIONS
    assert len(set(of_run.evaluated)) > 2
    # And the clients were really answered together.
    assert max(batch_sizes(server)) > 4


def test_an_answer_says_why_it_ended_and_how_many_tokens_it_took(client, body):
    whole = client.post("/chat/completions", json=body).json()
    cut = client.post("/chat/completions", json={**body, "max_tokens": 1}).json()
    assert whole["model"] == cut["model"] == body["model"]
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["usage"]["completion_tokens"] == 1
    assert cut["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"] > 20
    text = cut["choices"][0]["message"]["content"]
    assert whole["choices"][0]["message"]["content"].startswith(text)
    limit = client.post("/chat/completions", json={**body, "max_tokens": 10_000}).json()
    assert limit["choices"][0]["message"] == whole["choices"][0]["message"]


def test_a_stream_holds_the_same_answer(client, body):
    whole = client.post("/chat/completions", json=body).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    answer = client.post("/chat/completions", json={**body, **options})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    first, end, usage = map(json.loads, events[:-1])
    assert first["choices"][0]["delta"]["content"] == whole["choices"][0]["message"]["content"]
    assert end["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert usage["usage"] == whole["usage"]


def test_the_whole_prompt_and_the_bare_question_are_one_question(client, body):
    bare = client.post("/chat/completions", json=body).json()
    content = body["messages"][0]["content"]
    text = content[-1]["text"] + "\nAnswer with a word or a short phrase."
    body["messages"][0]["content"] = [*content[:-1], {"type": "text", "text": text}]
    prompted = client.post("/chat/completions", json=body).json()
    assert prompted["usage"] == bare["usage"]
    assert prompted["choices"] == bare["choices"]


def test_several_pictures_and_none_are_answered(client, of_run, server):
    texts = {}
    for number in (0, 1, 3):
        urls = [data_url(e.images[0]) for e in of_run.examples[:number]]
        parts = [{"type": "image_url", "image_url": url} for url in urls]
        content = [*parts, {"type": "text", "text": "What is this?"}]
        body = {"model": server.model, "messages": [{"role": "user", "content": content}]}
        answer = client.post("/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        texts[number] = answer.json()["usage"]["prompt_tokens"]
    assert texts[0] < texts[1] < texts[3]


AS_JSON = {"content-type": "application/json"}
BROKEN = "data:image/png;base64,iVBORw0KGgo="


def user(*parts):
    return {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "Why?"}]}]}


def picture(url, **more):
    return {"type": "image_url", "image_url": {"url": url, **more}}


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"n": 2}, 400, "unsupported_value"),
        ({"temperature": 0.7}, 400, "unsupported_value"),
        ({"logprobs": True}, 400, "unsupported_value"),
        ({"tools": [{"type": "function"}]}, 400, "unsupported_value"),
        ({"response_format": {"type": "json_object"}}, 400, "unsupported_value"),
        ({"best_of": 3}, 400, "unsupported_parameter"),
        ({"\ud800": 3}, 400, "unsupported_parameter"),
        ({"model": "\ud800"}, 404, "model_not_found"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "query_not_allowed"),
        ({"max_tokens": 0}, 400, "invalid_value"),
        ({"max_tokens": "8"}, 400, "invalid_value"),
        ({"max_tokens": 8, "max_completion_tokens": 8}, 400, "invalid_value"),
        ({"stream": "yes"}, 400, "invalid_type"),
        ({"model": "gpt-4"}, 404, "model_not_found"),
        ({"messages": []}, 400, "unsupported_messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, 400, "unsupported_messages"),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "query_empty"),
        ({"messages": [{"role": "user", "content": "a<|image_pad|>"}]}, 400, "query_not_allowed"),
        ({"messages": [{"role": "user", "content": "w " * 1500}]}, 400, "invalid_question"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, 400, None),
        (user(picture(BROKEN)), 400, "image_unreadable"),
        (user(picture("data:image/png;base64,%%%")), 400, "image_unreadable"),
        (user(picture("/etc/passwd")), 400, "image_not_allowed"),
        (user(picture("http://127.0.0.1/x.png")), 400, "image_not_allowed"),
        (user(picture(BROKEN, detail="low")), 400, "unsupported_value"),
        (user(*[picture(BROKEN)] * 99), 400, "too_many_images"),
    ],
)
def test_what_is_not_supported_is_refused_by_name_and_never_ignored(
    client, body, change, status, code
):
    content = json.dumps({**body, **change})  # httpx itself cannot send half a surrogate pair
    answer = client.post("/chat/completions", content=content, headers=AS_JSON)
    error = answer.json()["error"]
    assert answer.status_code == status, error
    assert error["code"] == (code or "unsupported_content")
    assert error["type"] == "invalid_request_error"
    assert "Traceback" not in answer.text


def test_neutral_fields_of_common_clients_are_taken(client, body):
    more = {
        **{"n": 1, "top_p": 1, "seed": 3, "user": "x", "stop": None, "logprobs": False},
        **{"presence_penalty": 0.0, "response_format": {"type": "text"}, "stream": False},
    }
    plain = client.post("/chat/completions", json=body).json()["choices"]
    assert client.post("/chat/completions", json={**body, **more}).json()["choices"] == plain


def test_a_body_that_is_no_request_is_an_error_object(client, body, monkeypatch):
    for content, headers, status in (
        (b"{", AS_JSON, 400),
        (b"[]", AS_JSON, 400),
        (b"[" * 100_000, AS_JSON, 400),
        (b"{}", {"content-type": "text/plain"}, 415),
        (b" " * (65 * 2**20), AS_JSON, 413),
    ):
        answer = client.post("/chat/completions", content=content, headers=headers)
        assert answer.status_code == status
        assert answer.json()["error"]["message"]
    assert client.get("/nothing").json()["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", ""]
)
def test_a_page_whose_name_leads_here_is_refused_on_every_path(server, host):
    for method, path in (("GET", "/health"), ("GET", "/v1/models"), ("POST", "/v1/nothing")):
        url = server.url.removesuffix("/v1") + path
        answer = httpx.request(method, url, headers={"Host": host}, trust_env=False)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "host_not_allowed"


def test_a_header_without_end_is_refused_and_a_client_that_leaves_makes_no_traceback(server, body):
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ")
        with suppress(OSError):
            connection.sendall(b"x" * 200_000)
        with suppress(ConnectionError):
            assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        head += "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
        connection.sendall(head.encode())
    data = json.dumps(body).encode()
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        head = f"{head.replace('1000', str(len(data)))}".removesuffix("{")
        connection.sendall(head.encode() + data)  # and hangs up before the answer
    assert httpx.get(server.url + "/models", trust_env=False).status_code == 200
    assert "Traceback" not in server.log.read_text()


def test_a_picture_that_the_model_cannot_take_is_a_400(client, body):
    strip = io.BytesIO()
    Image.new("L", (2010, 10)).save(strip, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(strip.getvalue()).decode()}"
    answer = client.post("/chat/completions", json={**body, **user(picture(url))})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == "model_refused"


def test_models_and_health_tell_what_is_served(client, server, vqa_rad_run):
    (model,) = client.get("/models").json()["data"]
    assert model["id"] == server.model == vqa_rad_run.name
    assert model["medvqa"]["metrics"]["test"]["f1"]["num_examples"] == NUM_QUESTIONS
    health = httpx.get(server.url.replace("/v1", "/health"), trust_env=False)
    assert health.json() == {"status": "ok", "model": server.model}


def test_neither_questions_nor_answers_are_logged(server, of_run):
    ask_all(server, of_run.examples[:3])
    log = server.log.read_text()
    assert "answered" in log
    assert not any(example.question in log for example in of_run.examples)
    assert "base64" not in log


def test_a_port_that_is_taken_is_one_clear_line_before_the_model_loads(vqa_rad_run, server):
    port = server.url.split(":")[-1].removesuffix("/v1")
    with pytest.raises(UserError, match=rf"port {port}: Address already in use; choose another"):
        main_serve([str(vqa_rad_run), "--port", port])


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("vllm", "--engine vllm: vllm is not installed; pip install vllm"),
        ("transformers", "transformers serve cannot load an adapter"),
    ],
)
def test_an_engine_that_is_not_there_is_one_clear_line(
    vqa_rad_run, monkeypatch, tmp_path, engine, message
):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=message):
        main_serve([str(vqa_rad_run), "--port", "0", "--engine", engine])


def test_a_missing_extra_is_one_clear_line(vqa_rad_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"^uvicorn not installed: pip install -e \"\.\[serve\]\""):
        main_serve([str(vqa_rad_run)])


def test_another_program_is_started_forwarded_to_and_ended(merged_model, of_run):
    trained = read_trained(merged_model)
    command = [sys.executable, "-m", "medvqa.cli", "serve", str(merged_model)]
    engine = ProgramEngine(trained, command, model=trained.name)
    try:
        assert engine.is_healthy
        example = of_run.examples[0]
        question = Question(text=example.question, images=example.images)
        assert asyncio.run(engine.answer(engine.prepare(question))).text == of_run.evaluated[0]
        short = engine.prepare(replace(question, max_new_tokens=1))
        assert asyncio.run(engine.answer(short)).cut
    finally:
        engine.close()
    assert not engine.is_healthy
    with pytest.raises(UserError, match=r"python\S* ended with code 3"):
        exits = [sys.executable, "-c", "raise SystemExit(3)"]
        ProgramEngine(trained, exits, model="x")


def test_two_pictures_with_one_name_are_not_confused(vqa_rad_run, of_run):
    answerer = Answerer.of_run(vqa_rad_run)
    examples = of_run.examples
    questions = [
        Question(text=e.question, images=(ImageBytes("image.jpg", e.images[0].read()),))
        for e in examples
    ]
    answers = [answer.text for answer in answerer.answer(questions)]
    assert answers == list(of_run.evaluated)
    # One after the other, and from several threads, too.
    with ThreadPoolExecutor(4) as pool:
        alone = list(pool.map(lambda q: answerer.answer([q])[0].text, questions[:8]))
    assert alone == answers[:8]


@pytest.fixture(scope="module")
def lenient(vqa_rad_run, tmp_path_factory):
    log = tmp_path_factory.mktemp("lenient") / "log"
    with running_server(vqa_rad_run, log, "--lenient", "--allow-host", "gpu7") as started:
        yield started


def test_openais_and_langchains_clients_get_the_evaluators_answers(server, lenient, of_run):
    example = of_run.examples[0]
    (message,) = request_body(example, server.model)["messages"]
    chat = [{"role": "system", "content": "You are a radiologist."}, message]
    strict = openai.OpenAI(base_url=server.url, api_key="none")
    answer = strict.chat.completions.create(model=server.model, messages=[message])
    assert answer.choices[0].message.content == of_run.evaluated[0]
    with pytest.raises(openai.BadRequestError, match="exactly one message"):
        strict.chat.completions.create(model=server.model, messages=chat)
    client = openai.OpenAI(base_url=lenient.url, api_key="none")
    events = client.chat.completions.create(
        model=lenient.model, messages=chat, temperature=0.7, stream=True
    )
    first = next(iter(events))
    assert first.choices[0].delta.content == of_run.evaluated[0]
    assert first.medvqa["ignored"] == ["temperature", "messages[0] (system)"]
    front_end = ChatOpenAI(
        base_url=lenient.url, api_key="none", model=lenient.model, temperature=0.7
    )
    assert front_end.invoke(chat).content == of_run.evaluated[0]
    # Once per client, and without what was asked.
    assert lenient.log.read_text().count("client 127.0.0.1: ignored temperature") == 1
    assert "radiologist" not in lenient.log.read_text()
    named = httpx.get(f"{lenient.url}/models", headers={"Host": "gpu7:80"}, trust_env=False)
    assert named.status_code == 200


# The last one: it ends the server.
def test_a_stop_finishes_what_is_in_flight_and_then_exits_with_0(server, body, of_run):
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\nExpect: 100-continue\r\n\r\n"
    )
    connections = [socket.create_connection((host, int(port)), timeout=60) for _ in range(8)]
    for connection in connections:
        connection.sendall(head.encode())
        # The server says this when it begins to read the body: the request is in flight.
        assert connection.recv(1024).startswith(b"HTTP/1.1 100 ")
    server.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:  # until nobody new is let in
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            break
        time.sleep(0.02)
    for connection in connections:
        connection.sendall(data)
    for connection in connections:
        with connection, connection.makefile("rb") as stream:
            answer = stream.read()
        assert answer.startswith(b"HTTP/1.1 200 ")
        text = json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["message"]["content"]
        assert text == of_run.evaluated[0]
    assert server.process.wait(60) == 0
