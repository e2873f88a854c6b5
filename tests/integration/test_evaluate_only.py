"""Evaluating without training: any base, adapter or server, with the records of a run."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from medvqa.config.errors import UserError
from medvqa.config.model import Device, ModelConfig
from medvqa.models.adapter import save_adapter
from medvqa.models.load import load_base, load_peft_adapter
from medvqa.report.study import read_study
from medvqa.tracking.record import read_json
from tests.unit.evaluation.test_untrained import evaluate


class _Server(BaseHTTPRequestHandler):
    bodies: list[dict] = []  # noqa: RUF012
    num_before_failure = 10**6

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if len(self.bodies) >= self.num_before_failure:
            self.send_error(503)
            return
        self.bodies.append(body)
        choice = {"message": {"content": " yes "}, "finish_reason": "length"}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [choice]}).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    _Server.bodies.clear()
    _Server.num_before_failure = 10**6
    instance = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    Thread(target=instance.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{instance.server_port}/v1"
    instance.shutdown()


def test_a_base_is_evaluated_with_the_records_of_a_run_and_shown_by_a_report(tmp_path):
    rows = evaluate(tmp_path / "base", "tracking.pictures=true")
    assert len(rows) == 6
    record = read_json(tmp_path / "base" / "run.json")
    assert (record["state"], record["plan"]["num_steps"]) == ("finished", 0)
    assert read_json(tmp_path / "base" / "results.json")["scores"]
    assert (tmp_path / "base" / "metrics.png").is_file()
    assert not (tmp_path / "base" / "loss.png").exists()
    study = read_study([tmp_path / "base"])
    assert [arm.ordering for arm in study.arms] == ["untrained"]


@pytest.mark.parametrize("is_run", [True, False])
def test_a_saved_adapter_of_a_run_or_of_peft_changes_the_answers(tmp_path, tiny, is_run):
    import torch

    torch.manual_seed(0)
    for name, parameter in tiny.trainable:
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=2.0)
    place = tmp_path / "saved"
    save_adapter(tiny, place / "adapter" if is_run else place)
    base = evaluate(tmp_path / "base")
    adapted = evaluate(tmp_path / "adapted", f"adapter={place}")
    assert [r["id"] for r in base] == [r["id"] for r in adapted]
    assert [r["prediction"] for r in base] != [r["prediction"] for r in adapted]


def test_a_damaged_adapter_is_one_line(tmp_path, tiny):
    adapter = tmp_path / "adapter"
    save_adapter(tiny, adapter)
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"does not fit .*header"):
        load_peft_adapter(load_base(ModelConfig(name="medvqa/tiny", device=Device.cpu)), adapter)


def test_a_server_gets_our_prompt_and_an_interrupted_evaluation_asks_only_the_rest(
    tmp_path: Path, server
):
    options = (f"endpoint={server}", "model_name=other", "prompt=published")
    _Server.num_before_failure = 4
    with pytest.raises(UserError, match="answered 503"):
        evaluate(tmp_path / "served", *options)
    _Server.num_before_failure = 10**6
    rows = evaluate(tmp_path / "served", *options)
    assert [row["prediction"] for row in rows] == ["yes"] * 6
    assert all(row["cut"] for row in rows)
    assert len(_Server.bodies) <= 6 + 4  # what was answered but not written may be asked again
    for body in _Server.bodies:  # requests arrive in any order, and some rows have two images
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("other", 0, 2)
        text, *images = body["messages"][0]["content"]
        assert text["text"].startswith(" You are")
        assert images
        for image in images:
            assert image["image_url"]["url"].startswith("data:image/png;base64,")
    num_asked = len(_Server.bodies)
    evaluate(tmp_path / "served", *options)
    assert len(_Server.bodies) == num_asked


def test_a_server_is_asked_probes_rephrasings_and_without_the_pictures(tmp_path: Path, server):
    options = (
        *(f"endpoint={server}", "model_name=other", "evaluation.blind=true"),
        *("evaluation.probes=[leading,fake]", "evaluation.rephrasings=1"),
    )
    rows = evaluate(tmp_path / "served", *options)
    assert all((row["rephrased"], row["agreement"]) == (["yes"], 1) for row in rows)
    assert all(row["blind_prediction"] == "yes" for row in rows)
    probes = {p["probe"]: p for p in read_json(tmp_path / "served/results.json")["probes"]}
    assert probes["fake"]["scores"]["affirms_closed"]["mean"] == 1  # the server says yes to all
    num_asked = [sum(p["type"] == "image_url" for p in body["messages"][0]["content"])
                 for body in _Server.bodies]  # fmt: skip
    assert num_asked.count(0) == 6
    assert len(num_asked) == 6 * 3 + sum(p["num_questions"] for p in probes.values())
