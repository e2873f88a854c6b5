"""Exports: what loads back, what the papers say, what is refused, and what a kill leaves."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from medvqa.config.errors import UserError
from medvqa.config.lora import LoraConfig
from medvqa.export.atomic import new_directory
from medvqa.export.card import DISCLAIMER
from medvqa.export.command import ExportOptions, export, main_export
from medvqa.export.merging import MergeCheck
from medvqa.export.vllm import max_lora_rank, vllm_command
from medvqa.models.encode import Encoder
from medvqa.models.source import EMBEDDED
from medvqa.models.trained import Kind, load_trained, read_trained
from tests.asking import asked, equal, in_process
from tests.conftest import NUM_QUESTIONS, ROOT


@pytest.fixture(scope="module")
def adapter(vqa_rad_run, tmp_path_factory):
    return export(
        ExportOptions(run=vqa_rad_run, target=tmp_path_factory.mktemp("export") / "adapter")
    )


@pytest.fixture
def copied_run(vqa_rad_run, tmp_path):
    return shutil.copytree(vqa_rad_run, tmp_path / "run")


def export_json(directory):
    return json.loads((directory / "export.json").read_text())


def logits(model, batch):
    model.eval()
    with torch.inference_mode():
        return model(**batch).logits


def test_the_exported_adapter_loads_by_the_code_of_its_own_card(
    vqa_rad_run, adapter, monkeypatch, phantoms
):
    code = re.search(r"```python\n(.*?)```", (adapter / "README.md").read_text(), re.S)[1]
    names = {}
    monkeypatch.chdir(adapter)
    exec(code, names)
    loaded = load_trained(read_trained(vqa_rad_run))
    encoder = Encoder(names["processor"], max_length_tokens=512)
    batch = encoder.generation_batch([encoder.encode(example) for example in phantoms[:2]])
    expected = logits(loaded.model, batch)
    assert torch.allclose(logits(names["model"], batch), expected, atol=1e-4)
    with loaded.adapter_disabled():
        assert not torch.allclose(logits(loaded.model, batch), expected, atol=1e-2)
    # The processor that goes along carries the run's pixel budget.
    assert names["processor"].image_processor.size.longest_edge == 16384


def test_an_adapter_names_its_base_and_no_path_of_this_machine(vqa_rad_run, adapter, shared):
    trained = read_trained(adapter)
    assert trained.kind is Kind.adapter
    assert trained.name == vqa_rad_run.name
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "medvqa/tiny"
    values = export_json(adapter)
    assert values["base"]["name"] == "medvqa/tiny"
    assert {"revision", "load_in_4bit", "is_quantized"} <= set(values["base"])
    assert values["adapter_sha256"] == read_trained(vqa_rad_run).adapter_sha256()
    for path in adapter.rglob("*"):
        if path.suffix in (".json", ".md"):
            text = path.read_text()
            assert str(ROOT) not in text
            assert str(shared) not in text
            assert str(vqa_rad_run.parent) not in text
    # Questions of a data set are not ours to hand on.
    assert not list(adapter.rglob("predictions.jsonl"))


def test_the_card_tells_data_curriculum_metrics_and_licences(vqa_rad_run, adapter):
    card = (adapter / "README.md").read_text()
    record = json.loads((vqa_rad_run / "run.json").read_text())
    score = json.loads(
        (vqa_rad_run / "evaluation" / "final" / "test" / "metrics.json").read_text()
    )["summary"]["overall"]["f1"]
    cell = f"{score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}] n={NUM_QUESTIONS}"
    for text in (
        DISCLAIMER,
        cell,
        "vqa_rad 1,797",
        record["data"]["training"]["sha256"],
        record["plan"]["order_sha256"],
        "`lora.r` | `16`",
        "`training.learning_rate` | `0.002`",
        "data `vqa_rad` | CC0 1.0",
        "base model `medvqa/tiny` | Apache-2.0",
        "code (medvqa) | Apache-2.0",
        "--enable-lora --max-lora-rank 16",
    ):
        assert text in card, text
    assert card.index("base model | overall") < card.index("with the adapter | overall")


def test_the_card_tells_what_evaluation_and_training_share(copied_run, tmp_path):
    record = json.loads((copied_run / "run.json").read_text())
    record["contamination"] = {
        "action": "report",
        "num_training_rows_concerned": 1234,
        "num_dropped": 0,
        "sets": {"test": {"image_overlap": 0.995, "item_overlap": 0.02, "num_items": 9}},
    }
    (copied_run / "run.json").write_text(json.dumps(record))
    card = (
        export(ExportOptions(run=copied_run, target=tmp_path / "out")) / "README.md"
    ).read_text()
    assert (
        "`test` 99.5% of the pictures and 2.0% of the questions with picture and answer (9)" in card
    )
    assert "1,234 training rows concerned, 0 of them dropped before training" in card


def test_merged_weights_answer_as_the_adapter_and_both_scores_are_kept(
    vqa_rad_run, merged_model, shared
):
    values = export_json(merged_model)
    check = values["merge"]
    assert check["merged_minus_adapter"] < 1e-3 * check["adapter_minus_base"]
    assert check["merged_minus_base"] > 0.9 * check["adapter_minus_base"]
    assert check["equal_answers"] == {"test": {"equal": NUM_QUESTIONS, "of": NUM_QUESTIONS}}
    scores = values["scores"]["test"]
    # Answers are equal; the confidence in them differs by the rounding of the merge.
    for group, adapter in scores["adapter"].items():
        assert scores["merged"][group].keys() == adapter.keys()
        for name, score in adapter.items():
            assert scores["merged"][group][name] == pytest.approx(score, abs=1e-4), (group, name)
    of_run = asked(vqa_rad_run, str(shared / "data" / "vqa_rad"))
    assert equal(in_process(merged_model, of_run.examples), of_run) == NUM_QUESTIONS
    assert of_run.zero_shot != of_run.evaluated
    assert "Merged in float32" in (merged_model / "README.md").read_text()
    # The merged model's own predictions stay with the run.
    assert not list(merged_model.rglob("predictions.jsonl"))
    assert list((vqa_rad_run / "after_merge").rglob("predictions.jsonl"))


def test_an_adapter_that_changes_nothing_is_refused(copied_run, tmp_path):
    path = copied_run / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({n: t if "lora_A" in n else torch.zeros_like(t) for n, t in tensors.items()}, path)
    target = tmp_path / "merged"
    with pytest.raises(UserError, match="merged equals base"):
        export(ExportOptions(run=copied_run, target=target, is_merged=True))
    assert not [p for p in tmp_path.iterdir() if p != copied_run]


@pytest.mark.parametrize(
    ("error", "effect", "message"),
    [
        (0.2, 1.0, "merged differs from adapter: its logits are off by 20.0%"),
        (1.0, 0.0, "merged equals base"),
        (float("nan"), 1.0, "merged differs from adapter"),
    ],
)
def test_a_merge_that_lost_the_adapter_is_refused(error, effect, message):
    check = MergeCheck(
        num_prompts=8,
        adapter_minus_base=1.0,
        merged_minus_adapter=error,
        merged_minus_base=effect,
        tolerance=0.1,
    )
    with pytest.raises(UserError, match=message):
        check.require()
    replace(check, merged_minus_adapter=0.05, merged_minus_base=0.98).require()


def test_a_base_in_4_bits_is_refused_with_the_reason(vqa_rad_run, tmp_path):
    base = shutil.copytree(EMBEDDED["medvqa/tiny"], tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(config))
    wanted = ExportOptions(
        run=vqa_rad_run, target=tmp_path / "merged", is_merged=True, base=str(base)
    )
    with pytest.raises(UserError, match=r"stored in 4 bits.*original 16-bit weights with --base"):
        export(wanted)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"peft_type": "LORA", "r": 3}'])
def test_settings_that_are_not_the_adapters_are_refused(copied_run, tmp_path, text):
    path = copied_run / "adapter" / "adapter_config.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=r"adapter_config\.json is missing, damaged or of another"):
        export(ExportOptions(run=copied_run, target=tmp_path / "target"))
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("change", [{"model": None}, {"model": []}, {"config": {}}])
def test_a_damaged_record_is_refused_in_one_line(copied_run, change):
    path = copied_run / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        read_trained(copied_run)


def test_an_unfinished_run_is_refused(copied_run, tmp_path):
    record = json.loads((copied_run / "run.json").read_text())
    (copied_run / "run.json").write_text(json.dumps({**record, "state": "interrupted"}))
    with pytest.raises(UserError, match="is interrupted, not finished"):
        export(ExportOptions(run=copied_run, target=tmp_path / "out"))
    with pytest.raises(UserError, match="neither a run nor an export: no such directory"):
        export(ExportOptions(run=tmp_path / "nowhere", target=tmp_path / "out"))


def test_an_evaluation_set_that_has_changed_is_refused(copied_run, tmp_path):
    record = json.loads((copied_run / "run.json").read_text())
    record["data"]["test"]["sha256"] = "0" * 64
    (copied_run / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="test is not what the run was evaluated on"):
        export(ExportOptions(run=copied_run, target=tmp_path / "out", is_merged=True))


def test_a_killed_export_leaves_no_directory_that_loads(vqa_rad_run, tmp_path):
    target = tmp_path / "merged"
    partial = tmp_path / ".merged.partial"
    command = [sys.executable, "-m", "medvqa.cli", "export", str(vqa_rad_run), "--merge"]
    process = subprocess.Popen(
        [*command, "--out", str(target)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    while not list(partial.glob("*.safetensors")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not target.exists()
    with pytest.raises(UserError, match=r"no run.json and no export.json"):
        read_trained(partial)
    # The next one to the same place starts clean.
    export(ExportOptions(run=vqa_rad_run, target=target))
    assert read_trained(target).kind is Kind.adapter
    assert not list(target.glob("model*.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


# Kills itself at the n-th call that touches the disk; exits with 0 if there are fewer.
KILLED = """
import os, pathlib, signal, sys
from pathlib import Path
from medvqa.export.atomic import new_directory

def run(target, number):
    left = [number]
    def counted(call):
        def counting(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)
        return counting
    for owner, name in ((os, "fsync"), (os, "rename"), (os, "unlink"), (os, "rmdir"), (os, "mkdir"),
                        (pathlib.os, "rename")):
        setattr(owner, name, counted(getattr(owner, name)))
    with new_directory(target) as directory:
        (directory / "weights").write_text("new")
        (directory / "export.json").write_text('{"is": "new"}')

for number in range(60):
    target = Path(sys.argv[1]) / str(number) / "out"
    target.mkdir(parents=True)
    (target / "weights").write_text("old")
    (target / "export.json").write_text('{"is": "old"}')
    child = os.fork()
    if child == 0:
        run(target, number)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(number, os.WIFSIGNALED(status))
    if not os.WIFSIGNALED(status):
        break
"""


def test_a_kill_at_any_step_leaves_the_old_export_or_the_new_one_or_none(tmp_path):
    answer = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    outcomes = answer.stdout.split()[1::2]
    assert len(outcomes) > 8
    assert outcomes == ["True"] * (len(outcomes) - 1) + ["False"]
    found = []
    for number in range(len(outcomes)):
        target = tmp_path / str(number) / "out"
        is_there = (target / "export.json").is_file()
        state = export_json(target)["is"] if is_there else "none"
        assert not target.exists() or (target / "weights").read_text() == state
        found.append(state)
    assert set(found) == {"old", "none", "new"}
    assert found == sorted(found, key=["old", "none", "new"].index)


def test_a_second_export_replaces_the_first_and_spares_what_is_no_export(vqa_rad_run, tmp_path):
    target = tmp_path / "out"
    for text in ("first", "second"):
        with new_directory(target) as directory:
            (directory / "export.json").write_text(text)
    assert (target / "export.json").read_text() == "second"
    own = tmp_path / "thesis"
    own.mkdir()
    (own / "chapter.tex").write_text("dear")
    with pytest.raises(UserError, match="exists and is no earlier export"):
        export(ExportOptions(run=vqa_rad_run, target=own))
    assert (own / "chapter.tex").read_text() == "dear"
    with new_directory(target), pytest.raises(UserError, match="is being written by process"):
        export(ExportOptions(run=vqa_rad_run, target=target))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gguf", "q8_0"], "--gguf goes with --merge"),
        (["--dtype", "bfloat16"], "--dtype goes with --merge"),
        (["--public"], "--public goes with --push REPO"),
        (["--merge", "--converter", "x"], "--converter goes with --gguf TYPE"),
        (["--merge", "--gguf", "q8_0"], "--gguf needs llama.cpp's convert_hf_to_gguf.py"),
        (["--merge", "--gguf", "q8_0", "--converter", "/nowhere"], "/nowhere: no such file"),
        (["--push", "me/model"], "--push needs a token of the hub"),
        (["--push", "not a name"], "--push not a name: "),
    ],
)
def test_an_option_that_cannot_work_is_one_clear_line(
    vqa_rad_run, tmp_path, monkeypatch, options, message
):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=re.escape(message)):
        main_export([str(vqa_rad_run), "--out", str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()


def test_a_push_that_fails_leaves_the_export_and_tells_no_token(vqa_rad_run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_not_to_be_shown")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    target = tmp_path / "out"
    with pytest.raises(UserError, match=r"cannot push to me/model \(.*the export itself") as error:
        export(ExportOptions(run=vqa_rad_run, target=target, repository="me/model"))
    assert "hf_not" not in str(error.value)
    assert read_trained(target).kind is Kind.adapter
    assert "hf_not" not in "".join(p.read_text() for p in target.glob("*.json"))


CONVERTER = """
import argparse, pathlib, sys
parser = argparse.ArgumentParser()
parser.add_argument("model", type=pathlib.Path)
parser.add_argument("--mmproj", action="store_true")
parser.add_argument("--outfile", type=pathlib.Path)
parser.add_argument("--outtype")
options = parser.parse_args()
assert (options.model / "model.safetensors").is_file()
if options.outtype == "f32":
    sys.exit("cannot: no such type")
options.outfile.write_text(f"{options.outtype} {options.mmproj}")
"""


def test_the_converter_of_llama_cpp_writes_the_model_and_its_vision_tower(tmp_path):
    from medvqa.export.outside import convert

    # Takes the arguments of convert_hf_to_gguf.py; docs/export.md says what the real one did.
    converter = tmp_path / "convert_hf_to_gguf.py"
    converter.write_text(CONVERTER)
    (tmp_path / "model.safetensors").write_text("")
    names = convert(converter, tmp_path, gguf_type="q8_0", name="run")
    assert names == ["run-q8_0.gguf", "mmproj-run-q8_0.gguf"]
    assert [(tmp_path / n).read_text() for n in names] == ["q8_0 False", "q8_0 True"]
    with pytest.raises(UserError, match=r"could not write run-f32\.gguf: cannot: no such type"):
        convert(converter, tmp_path, gguf_type="f32", name="run")


@pytest.mark.parametrize(("rank", "allowed"), [(1, 1), (4, 8), (16, 16), (17, 32), (200, 256)])
def test_vllms_rank_is_rounded_up_to_one_that_it_knows(rank, allowed):
    assert max_lora_rank(LoraConfig(r=rank)) == allowed


def test_vllm_is_told_of_the_vision_towers_adapter(vqa_rad_run):
    trained = read_trained(vqa_rad_run)
    plain = vllm_command(trained, weights="w")
    assert "--enable-tower-connector-lora" not in plain
    assert f"{trained.name}=w" in plain
    vision = replace(trained, lora=LoraConfig(vision_layers=True))
    assert "--enable-tower-connector-lora" in vllm_command(vision, weights="w")
    with pytest.raises(UserError, match=r"lora\.r=600, but vLLM serves ranks up to 512"):
        vllm_command(replace(trained, lora=LoraConfig(r=600)), weights="w")
