"""The tool's config and its endpoint: mistakes are one line, errors typed, keys never shown."""

import base64
import json
import logging
import re

import pytest
from PIL import Image

from medvqa.config.errors import MISTAKES, explain
from medvqa.config.model import ModelConfig
from medvqa.config.prompt import Images, PromptConfig
from medvqa.data.image import ImageBytes, load_rgb
from medvqa.models.prompt import user_message
from medvqa.serve.endpoint import Endpoint, PixelBudget
from medvqa.serve.intake import Question
from medvqa.serve.tool import DISCLAIMER, build
from medvqa.serve.tool_config import ToolConfig, read_tool_config
from tests.conftest import ROOT, SECRET
from tests.loopback import body, redirect, served
from tests.unit.serve.test_intake import PNG, data_url, encoded

OPENAI = ("service=openai", "model=m")
WHAT = data_url(PNG)


def completion(content, finish_reason="stop", **more):
    choice = {"message": {"content": content}, "finish_reason": finish_reason}
    return body(json.dumps({"choices": [choice], **more}).encode())


def said(base_url, *, timeout_s=5.0, images=(WHAT,)):
    config = ToolConfig(
        **{"service": read_tool_config(None, [*OPENAI, "base_url=http://x"]).service},
        base_url=base_url,
        model="m",
        api_key_env="THE_KEY",
        timeout_s=timeout_s,
    )
    return build(config, {"THE_KEY": SECRET}).great_brain_specialist("What?", list(images))


def url(server):
    return f"http://127.0.0.1:{server.port}/v1"


def test_an_answer_is_stripped_marked_where_cut_and_always_disclaimed():
    with served(completion("  lung \n", "length")) as server:
        first, cut, last = said(url(server)).splitlines()
    assert (first, last) == ("lung", DISCLAIMER)
    assert "cut" in cut


@pytest.mark.parametrize(
    ("notes", "note"),
    [
        ({"confidence": 0.83, "abstained": False}, "Note: calibrated confidence 0.83."),
        ({"confidence": 0.21, "abstained": True}, None),
        ({"confidence": 7.0}, None),
        ("broken", None),
        (None, None),
    ],
)
def test_the_confidence_of_our_own_server_reaches_the_agent(notes, note):
    with served(completion("lung", medvqa=notes)) as server:
        lines = said(url(server)).splitlines()
    assert lines[:-1] == ["lung", *filter(None, [note])]


def test_an_endpoint_gets_the_evaluators_message_greedy_and_the_key_as_a_bearer_token():
    with served(completion("lung")) as server:
        said(url(server), images=[WHAT, "None", WHAT])
    (path, headers, data) = server.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {SECRET}"
    request = json.loads(data)
    assert (request["temperature"], request["max_tokens"]) == (0, 32)
    (message,) = request["messages"]
    assert [part["type"] for part in message["content"]] == ["image_url", "image_url", "text"]
    assert [message["content"][-1]] == user_message("What?", num_images=0)["content"]
    picture = base64.b64decode(message["content"][0]["image_url"]["url"].partition(",")[2])
    assert load_rgb(ImageBytes("sent", picture)) == load_rgb(ImageBytes("original", PNG))


def test_an_endpoint_gets_the_runs_own_prompt_once_whatever_the_client_sends():
    prompt = PromptConfig(text="You are a doctor.\nQuestion: {question}", images=Images.last)
    picture = ImageBytes("sent", PNG)
    with served(completion("lung")) as server:
        endpoint = Endpoint(
            base_url=url(server),
            model="m",
            api_key=None,
            max_new_tokens=4,
            timeout_s=5,
            prompt=prompt,
        )
        for text in ("What?", "You are a doctor.\nQuestion: What?"):
            endpoint.answer(Question(text=text, images=(picture,)))
    for _, _, data in server.requests:
        (message,) = json.loads(data)["messages"]
        text, image = message["content"]
        assert text == {"type": "text", "text": "You are a doctor.\nQuestion: What?"}
        assert image["type"] == "image_url"


MALFORMED = [b"", b"<html>", b"[]", b'{"choices": []}', b'{"choices": [{}]}', b"[" * 100_000]


@pytest.mark.parametrize("data", MALFORMED, ids=lambda data: repr(data[:20]))
def test_what_is_no_completion_is_an_endpoint_error(data):
    with served(body(data)) as server:
        text = said(url(server))
    assert re.fullmatch(r"\[endpoint_error\] http\S+ answered with no chat completion", text)


def test_an_endpoint_that_is_away_slow_or_too_talkative_is_typed():
    with served(body(bytes(5_000_000))) as server:
        assert said(url(server)).startswith("[endpoint_error]")
    assert said(url(server)).startswith("[endpoint_unreachable]")  # it is closed now

    def hang(handler):
        handler.rfile.read(1)  # nothing comes

    with served(hang) as server:
        assert said(url(server), timeout_s=0.3).startswith("[timeout]")


def test_pictures_are_not_sent_on_to_where_the_endpoint_redirects():
    with served(completion("from elsewhere")) as other:
        with served(redirect(f"http://127.0.0.1:{other.port}/v1/chat/completions")) as server:
            text = said(url(server))
        assert text.startswith("[endpoint_error]")
        assert "answered 302" in text
        assert other.num_connections == 0


def test_a_proxy_of_the_environment_does_not_get_the_pictures(monkeypatch):
    with served(completion("lung")) as server, served(completion("proxy")) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert said(url(server)).startswith("lung")
        assert proxy.num_connections == 0


@pytest.mark.parametrize(
    "reply",
    [
        json.dumps({"error": {"message": f"Incorrect API key: {SECRET}"}}).encode(),
        json.dumps({"detail": f"Bearer {SECRET}"}).encode(),
        f"token={SECRET}\r\n\x1b[31mred".encode(),
        json.dumps(["a list"]).encode(),
    ],
)
def test_a_key_is_in_no_message_and_in_no_log_even_if_the_endpoint_repeats_it(reply, caplog):
    caplog.set_level(logging.DEBUG)
    with served(body(reply, status=401)) as server:
        text = said(url(server))
    assert text.startswith("[endpoint_error]")
    assert "answered 401" in text
    assert text.isprintable()
    assert SECRET not in text + caplog.text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "service=in_process needs run="),
        (["run=/nowhere"], "/nowhere is neither a run nor an export: no such directory"),
        (["run=x", "model=m"], "model: only for service=openai"),
        (["run=x", "resize=tool"], "resize: only for service=openai"),
        (["servce=openai"], "unknown key 'servce'; did you mean service= or device=?"),
        (["limits.max_imges=1"], "unknown key 'limits.max_imges'"),
        (["run=x", "limits.max_images=0"], "limits.max_images must be in [1, "),
        (["run=x", "limits.max_images=many"], "could not be converted to Integer"),
        (["run=x", "timeout_s=0"], "timeout_s must be in (0, "),
        (["run=x", "allowed_roots=[/nowhere]"], "/nowhere is no directory with an absolute path"),
        (["run=x", "allowed_roots=[.]"], ". is no directory with an absolute path"),
        (["run"], "cannot read 'run'; write key=value"),
        ([*OPENAI], "service=openai needs base_url and model"),
        ([*OPENAI, "base_url=ftp://x"], "base_url must begin with http:// or https://"),
        ([*OPENAI, "base_url=http://x/v1", "resize=tool"], "resize=tool needs run="),
        ([*OPENAI, "base_url=http://x/v1", "max_new_tokens=0"], "max_new_tokens must be in [1, "),
        ([*OPENAI, "base_url=http://x/v1", "api_key_env=NO_KEY"], "that variable is not set"),
        ([*OPENAI, f"base_url=http://u:{SECRET}@x/v1"], "must hold no user, password or query"),
        ([*OPENAI, f"base_url=http://x/v1?key={SECRET}"], "must hold no user, password or query"),
        ([*OPENAI, "base_url=http://x/v1", f"api_key_env={SECRET}"], "name of an environment"),
        ([*OPENAI, "base_url=http://x/v1", f"api_key={SECRET}"], "unknown key 'api_key'"),
    ],
)
def test_a_mistake_in_the_config_is_one_line_that_holds_no_secret(overrides, message):
    with pytest.raises(MISTAKES) as mistake:
        build(read_tool_config(None, overrides), {})
    text = explain(mistake.value)
    assert message in text
    assert SECRET not in text


def test_the_configs_of_the_documentation_are_valid(tmp_path):
    blocks = re.findall(
        r"```yaml\n(.*?)```", (ROOT / "docs" / "tool.md").read_text("utf-8"), re.DOTALL
    )
    assert len(blocks) >= 2
    for block in blocks:
        path = tmp_path / "tool.yaml"
        path.write_text(block.replace("/data/images", str(tmp_path)), encoding="utf-8")
        read_tool_config(path)


def test_an_image_is_resized_to_the_size_that_the_evaluator_makes_of_it():
    budget = PixelBudget(ModelConfig(name="medvqa/tiny", min_pixels=4096, max_pixels=16384))
    for size in ((500, 300), (20, 20), (96, 96)):
        small = load_rgb(budget.resized(ImageBytes("i", encoded(Image.new("RGB", size)))))
        assert 4096 <= small.width * small.height <= 16384
        assert budget.resized(ImageBytes("i", encoded(small))).data == encoded(small)
