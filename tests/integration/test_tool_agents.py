"""The tool at work: a LangGraph agent and MCP clients get answers about a VQA-RAD image."""

import asyncio
import json
import os
import pickle
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastmcp import Client
from fastmcp.client.transports import StdioTransport
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from medvqa.config.errors import UserError
from medvqa.serve import tool as tool_module
from medvqa.serve.agents import langchain_tool
from medvqa.serve.answering import Answerer
from medvqa.serve.app import ChatService, build_app
from medvqa.serve.command import listening
from medvqa.serve.engines import OwnEngine
from medvqa.serve.hosts import Hosts
from medvqa.serve.intake import Intake, Limits
from medvqa.serve.tool import DISCLAIMER, EMPTY, NAME, build, great_brain_specialist
from medvqa.serve.tool_config import ToolConfig
from medvqa.tracking.record import read_lines
from tests.conftest import ROOT, SECRET

pytestmark = pytest.mark.slow
# Stands for a library that prints while it is imported and while it works.
NOISY = """
import os, sys
import medvqa.serve.answering as answering
original = answering.Answerer.answer
def answer(*arguments):
    os.write(1, b"noise below Python\\n")
    print("noise", flush=True)
    return original(*arguments)
answering.Answerer.answer = answer
load = answering.load_trained
def noisy(*arguments, **options):
    os.write(1, b"noise at the start\\n")
    print("noise", flush=True)
    return load(*arguments, **options)
answering.load_trained = noisy
"""
WRONG_ARGUMENTS = [
    {"query": 7},
    {"images": ["a.png"]},
    {"query": "What?", "images": {"a": 1}},
    {"query": "What?", "images": [[]]},
    {"query": "What?", "picture": "a.png"},
]


@pytest.fixture(scope="module")
def images(shared) -> Path:
    return shared / "data" / "vqa_rad"


@pytest.fixture(scope="module")
def specialist(vqa_rad_run, images):
    return build(ToolConfig(run=str(vqa_rad_run), allowed_roots=[str(images)]))


@pytest.fixture(scope="module")
def asked(vqa_rad_run):
    """Test questions with the evaluator's own answers."""
    return read_lines(vqa_rad_run / "evaluation" / "final" / "test" / "predictions.jsonl")[:12]


def path_of(row) -> str:
    return f"VQA_RAD Image Folder/{row['cluster']}"


def answer_of(text: str) -> str:
    *_, last = text.splitlines()
    assert last == DISCLAIMER
    first = text.partition("\n")[0]
    return "" if first == EMPTY else first


def test_the_tool_answers_as_the_evaluator_did(specialist, asked):
    for row in asked:
        text = specialist.great_brain_specialist(row["question"], [path_of(row)])
        assert answer_of(text) == row["prediction"]


def test_several_images_answer_one_question_and_no_image_is_said(specialist, asked):
    first, second = path_of(asked[0]), path_of(asked[-1])
    two = specialist.great_brain_specialist("Which one is brighter?", [first, second, "None"])
    assert "2 images were used" in two
    assert "1 empty image reference(s)" in two
    none = specialist.great_brain_specialist("What is a pneumothorax?", None)
    assert "no image was used" in none
    assert none == specialist.great_brain_specialist("What is a pneumothorax?", [])


def test_an_image_that_is_refused_is_never_left_out_in_silence(specialist, asked):
    text = specialist.great_brain_specialist("Is it so?", [path_of(asked[0]), "/etc/passwd"])
    assert text.startswith("[image_not_allowed] ")


def test_more_tokens_than_the_model_takes_are_a_readable_refusal(specialist, asked):
    text = specialist.great_brain_specialist("why? " * 700, [path_of(asked[0])])
    assert text.startswith("[model_refused] ")
    assert "max_length_tokens" in text


class ScriptedModel(BaseChatModel):
    """A chat model that calls the tool once, then repeats what the tool said."""

    arguments: dict

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools, **_):
        assert [tool.name for tool in tools] == [NAME]
        return self

    def _generate(self, messages, stop=None, run_manager=None, **_):
        if isinstance(messages[-1], ToolMessage):
            message = AIMessage(content=f"The specialist says: {messages[-1].content}")
        else:
            call = {"name": NAME, "args": self.arguments, "id": "call-1"}
            message = AIMessage(content="", tool_calls=[call])
        return ChatResult(generations=[ChatGeneration(message=message)])


def agent_says(specialist, arguments) -> str:
    tool = langchain_tool(specialist)
    model = ScriptedModel(arguments=arguments).bind_tools([tool])
    graph = StateGraph(MessagesState)
    graph.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([tool]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    messages = graph.compile().invoke({"messages": [HumanMessage("What do you see?")]})["messages"]
    assert [type(message).__name__ for message in messages] == [
        *("HumanMessage", "AIMessage", "ToolMessage", "AIMessage")
    ]
    return messages[-1].text.removeprefix("The specialist says: ")


def test_a_langgraph_agent_answers_about_a_vqa_rad_image(specialist, asked):
    row = asked[0]
    text = agent_says(specialist, {"query": row["question"], "images": [path_of(row)]})
    assert answer_of(text) == row["prediction"]


@pytest.mark.parametrize(
    ("arguments", "begin"),
    [
        ({"query": "What?", "images": ["/etc/passwd"]}, "[image_not_allowed] "),
        ({"query": "What?", "images": {"a": 1}}, "[invalid_arguments] check images"),
        ({"images": []}, "[invalid_arguments] check query"),
    ],
)
def test_a_langgraph_agent_reads_an_error_as_text(specialist, arguments, begin):
    assert agent_says(specialist, arguments).startswith(begin)


def test_a_langgraph_agent_may_send_null_or_none_for_an_image(specialist):
    for nothing in ("None", [None], ["null", ""], None, []):
        text = agent_says(specialist, {"query": "What?", "images": nothing})
        assert "no image was used" in text


MAIN = "import sys; sys.argv[0] = 'medvqa'; import medvqa.cli as c; c.main()"


def command(*arguments: str, before: str = "") -> list[str]:
    return [sys.executable, "-c", f"{before}\n{MAIN}", "mcp", *arguments]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **more}


async def call(client: Client, **arguments) -> str:
    result = await client.call_tool(NAME, arguments)
    return result.content[0].text


def test_an_mcp_client_over_stdio_gets_the_evaluators_answer_and_nothing_but_the_protocol(
    vqa_rad_run, images, asked, tmp_path
):
    config, log, wire = (tmp_path / name for name in ("tool.yaml", "stderr", "stdout"))
    config.write_text(f"run: {vqa_rad_run}\nallowed_roots: [{images}]\n", encoding="utf-8")
    # A copy of what the server writes: this client would forgive a stray line, others do not.
    line = f"{shlex.join(command('--config', str(config), before=NOISY))} | tee {wire}"
    transport = StdioTransport("sh", ["-c", line], env=environment(), log_file=log)

    async def session():
        async with Client(transport, timeout=120) as client:
            row = asked[0]
            return await client.list_tools(), [
                await call(client, query=row["question"], images=[path_of(row)]),
                await call(client, query="What?", images=["None", None, ""]),
                await call(client, query="What?", images=["../../etc/passwd"]),
                *[await call(client, **arguments) for arguments in WRONG_ARGUMENTS],
            ]

    (tool,), (answer, without, refused, *wrong) = asyncio.run(session())
    assert tool.name == NAME
    assert "not a diagnosis" in tool.description
    assert set(tool.input_schema["properties"]) == {"query", "images"}
    assert answer_of(answer) == asked[0]["prediction"]
    assert "no image was used" in without
    assert refused.startswith("[image_not_allowed] ")
    assert all(text.startswith("[invalid_arguments] check ") for text in wrong)
    messages = [json.loads(line) for line in wire.read_text(encoding="utf-8").splitlines()]
    assert {message["jsonrpc"] for message in messages} == {"2.0"}
    said = log.read_text(encoding="utf-8")
    assert (said.count("noise at the start"), said.count("noise below Python")) == (1, 2)
    assert "Traceback" not in said


@contextmanager
def medvqa_serve(answerer: Answerer):
    """`medvqa serve`'s application around a run in this process; gives its base URL."""
    engine = OwnEngine(answerer)
    service = ChatService(engine, Intake([], Limits()), name=answerer.name)
    app = build_app(service, Hosts())
    with listening("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()
            engine.close()


def begun(port: int, headers: dict[str, str]) -> int:
    """Return the status of a client's first request."""
    body = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    }
    accepted = {"Accept": "application/json, text/event-stream", **headers}
    return httpx.post(f"http://127.0.0.1:{port}/mcp", headers=accepted, json=body).status_code


@contextmanager
def mcp_over_http(*arguments: str, **more: str):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        command("--http", "--port", str(port), *arguments),
        env=environment(**more),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield port
    finally:
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=30)
        assert SECRET not in log


def test_an_mcp_client_over_http_gets_the_same_answers_from_medvqa_serve(
    vqa_rad_run, images, asked
):
    answerer = Answerer.of_run(vqa_rad_run)
    with medvqa_serve(answerer) as base_url:
        arguments = [
            *("service=openai", f"base_url={base_url}", f"model={answerer.name}"),
            *("api_key_env=OPENAI_API_KEY", f"run={vqa_rad_run}", f"allowed_roots=[{images}]"),
        ]
        with mcp_over_http(*arguments, OPENAI_API_KEY=SECRET) as port:

            async def session():
                async with Client(f"http://127.0.0.1:{port}/mcp", timeout=60) as client:
                    return [
                        await call(client, query=row["question"], images=[path_of(row)])
                        for row in asked
                    ]

            texts = asyncio.run(session())
            # A page whose host's name leads here, as in DNS rebinding, sends what a client would.
            statuses = [begun(port, {"Host": host}) for host in (f"127.0.0.1:{port}", "evil.test")]
            statuses.append(begun(port, {"Origin": "http://evil.test"}))
    assert statuses[0] == 200
    assert all(400 <= status < 500 for status in statuses[1:])
    assert [answer_of(text) for text in texts] == [row["prediction"] for row in asked]


def test_a_calibrated_run_gives_its_confidence_and_abstains_below_the_threshold(
    vqa_rad_run, tmp_path
):
    copy = shutil.copytree(vqa_rad_run, tmp_path / "run")

    def asked(**values):
        bound = {"set": "test", "temperature": 1.0, "max_error": 0.5, "delta": 0.1}
        (copy / "calibration.json").write_text(json.dumps(bound | values))
        return build(ToolConfig(run=str(copy))).great_brain_specialist("What is this?")

    assert re.search(r"\nNote: calibrated confidence [01]\.\d\d\.\n", asked(threshold=0.0))
    for threshold in (1.0, None):  # None: no threshold was certified
        text = asked(threshold=threshold)
        assert re.match(r"\(no answer: confidence [01]\.\d\d is below the certified", text)
        assert text.endswith(DISCLAIMER)


def test_the_plain_function_takes_its_config_from_the_environment(
    vqa_rad_run, tmp_path, monkeypatch
):
    config = tmp_path / "tool.yaml"
    monkeypatch.setenv("MEDVQA_TOOL", str(config))
    tool_module._configured.cache_clear()
    assert great_brain_specialist("What?").startswith("[not_configured] no config ")
    config.write_text(f"run: {vqa_rad_run}\nallowed_rots: []\n", encoding="utf-8")
    assert "did you mean allowed_roots=" in great_brain_specialist("What?")
    config.write_text(f"run: {vqa_rad_run}\n", encoding="utf-8")
    assert great_brain_specialist("What?").endswith(DISCLAIMER)
    assert great_brain_specialist("", []) == "[query_empty] ask a question"


def test_no_secret_of_the_environment_is_in_any_file_of_a_run(vqa_rad_run):
    files = [path for path in vqa_rad_run.rglob("*") if path.is_file()]
    assert any(path.name == "run.json" for path in files)
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "pytorch_model.bin"])
def test_a_pickled_adapter_is_refused_and_not_opened(vqa_rad_run, tmp_path, name):
    copy = shutil.copytree(vqa_rad_run, tmp_path / "run")
    (copy / "adapter" / "adapter_model.safetensors").unlink()
    trap = tmp_path / "trap"

    class Trap:
        def __reduce__(self):
            return (Path.touch, (trap,))

    (copy / "adapter" / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match=r"incomplete: no adapter_model\.safetensors"):
        Answerer.of_run(copy)
    # A pickle under the name of a safetensors file is no safetensors file.
    (copy / "adapter" / name).rename(copy / "adapter" / "adapter_model.safetensors")
    with pytest.raises(UserError, match="cannot read the adapter"):
        Answerer.of_run(copy)
    assert not trap.exists()
