"""Qwen2.5-VL and Qwen3-VL with their real vocabulary, chat template and processor settings."""

import json
import shutil

import pytest
import torch
import transformers

from medvqa.config.data import SourceConfig
from medvqa.config.model import ModelConfig
from medvqa.data.image import load_rgb
from medvqa.data.pool import load_examples
from medvqa.models.encode import Encoder
from medvqa.models.prompt import user_message
from medvqa.models.sample import IGNORED
from medvqa.models.source import load_processor
from tests.integration.test_families import answers, execute

FOLDERS = {"qwen2_5_vl": "qwen2.5-vl-7b-instruct", "qwen3_vl": "qwen3-vl-embedding"}
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
VISION = {"depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2}


def real_directory(family, shared, place):
    """Copy a real directory in the hub's layout, all but its weights."""
    source = shared / "hubfiles" / FOLDERS[family]
    vocabulary = shared / "hubfiles" / FOLDERS["qwen2_5_vl"]
    shutil.copytree(source, place, ignore=shutil.ignore_patterns("SOURCE"))
    shutil.copy(vocabulary / "vocab.json", place)
    merges = (vocabulary / "merges.txt").read_text(encoding="utf-8")
    head = "" if merges.startswith("#version") else "#version: 0.2\n"
    (place / "merges.txt").write_text(head + merges, encoding="utf-8")
    return place


def add_weights(directory):
    """Write random weights of reduced depth and width beside the real files."""
    values = json.loads((directory / "config.json").read_text())
    text = values.get("text_config", values)
    text |= {**TEXT, **HEADS}
    scaling = text.pop("rope_scaling", None) or text.pop("rope_parameters")
    text["rope_parameters"] = {
        **{key: value for key, value in scaling.items() if key not in ("type", "rope_type")},
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [2, 1, 1],
    }
    values["vision_config"] |= {**VISION, "out_hidden_size": TEXT["hidden_size"]}
    deep = "deepstack_visual_indexes"
    if deep in values["vision_config"]:
        values["vision_config"][deep] = [0]
    else:
        values["vision_config"]["fullatt_block_indexes"] = [0]
    (directory / "config.json").write_text(json.dumps(values))
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(directory)
    model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.save_pretrained(directory)


@pytest.fixture(scope="session", params=FOLDERS)
def directory(request, shared, tmp_path_factory):
    if not (shared / "hubfiles").is_dir():
        pytest.skip(f"real files are absent: no {shared / 'hubfiles'}")
    return real_directory(request.param, shared, tmp_path_factory.mktemp("qwen") / request.param)


@pytest.fixture(scope="session")
def rows(shared):
    source = SourceConfig(
        name="vqa_rad", path=str(shared / "data" / "vqa_rad"), split="test", limit=50
    )
    return load_examples(source, seed=0)


def test_tokens_image_tokens_and_labels_are_those_of_the_processors_own_template(directory, rows):
    processor = load_processor(ModelConfig(name="a/b", path=str(directory), max_pixels=100_000))
    encoder = Encoder(processor, max_length_tokens=2048)
    assert len(rows) == 50
    for example in rows:
        message = user_message(example.question, num_images=1)
        message["content"][0] = {"type": "image", "image": load_rgb(example.images[0])}
        reply = {
            "role": "assistant",
            "content": [{"type": "text", "text": example.answers[0]}],
        }
        options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
        prompt = processor.apply_chat_template([message], add_generation_prompt=True, **options)
        whole = processor.apply_chat_template([message, reply], **options)["input_ids"][0]
        sample = encoder.encode(example)
        batch = encoder.training_batch([sample])
        ids, labels = batch["input_ids"][0], batch["labels"][0]
        assert list(sample.prompt_ids) == prompt["input_ids"][0].tolist()
        assert torch.equal(sample.pixel_values, prompt["pixel_values"])
        assert torch.equal(sample.image_grid_thw, prompt["image_grid_thw"])
        # Behind the end of the turn the template writes a newline, which is not learned.
        assert torch.equal(ids, whole[:-1])
        assert processor.tokenizer.decode(whole[-1:]) == "\n"
        num_prompt = prompt["input_ids"].shape[1]
        assert torch.equal(labels, ids.where(torch.arange(len(ids)) >= num_prompt, IGNORED))
        grid = prompt["image_grid_thw"][0]
        assert (ids == encoder.image_token_id).sum() == grid.prod() // 4


def test_a_run_on_such_a_directory_works_from_end_to_end(directory, shared, tmp_path):
    add_weights(directory)
    overrides = (
        *("model=hub", f"model.name={directory}", "model.max_pixels=40000", "tracking=disabled"),
        *("data=vqa_rad", f"data.path={shared / 'data' / 'vqa_rad'}", "data.limit=16"),
        *("data.evaluation.test.limit=6", "contamination=report", "training.max_steps=2"),
        *("evaluation.max_new_tokens=4", "evaluation.bertscore.enabled=false"),
        *("evaluation.zero_shot=false", "evaluation.after_each_stage=false"),
    )
    execute(overrides, tmp_path / "run")
    values = json.loads((tmp_path / "run" / "run.json").read_text())
    assert values["state"] == "finished"
    assert len(answers(tmp_path / "run")) == 6
    preview = (tmp_path / "run" / "preview.txt").read_text()
    assert "image tokens>" in preview and "<|im_end|>]]" in preview
