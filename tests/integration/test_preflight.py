"""Preflight says what a run will do, and what it will fail at, without loading a weight."""

import json
import os
from dataclasses import replace

import pytest
import torch
import transformers

from medvqa.config.lora import LoraConfig
from medvqa.config.machine import num_cuda_devices
from medvqa.curriculum import plan_curriculum
from medvqa.data.image import load_rgb
from medvqa.models.activations import KEPT, kept_bytes
from medvqa.models.encode import Encoder
from medvqa.models.source import hub_answers
from medvqa.preflight.command import main_preflight
from medvqa.preflight.doctor import main_doctor
from medvqa.preflight.gpu_memory import estimate_memory
from medvqa.preflight.model_shapes import PUBLISHED, count_shapes, model_shapes
from medvqa.preflight.probe import run_probe, total_seconds
from medvqa.preflight.tokens import Estimator, count_tokens
from tests.conftest import TINY, environment
from tests.forked import CLI, Forked
from tests.integration.test_leaks import leak  # noqa: F401  (a fixture)
from tests.unit.config.test_compose import config_of

SPY = """
import sys
sys.argv = sys.argv[1:]
from medvqa.cli import main
try:
    main()
finally:
    names = ("torch", "transformers", "datasets", "numpy", "rich")
    print("HEAVY:", *(n for n in names if n in sys.modules))
"""


def preflight(directory, *arguments, program=SPY):
    words = ("medvqa", "preflight", *arguments)
    env = environment(HF_HUB_OFFLINE="1")
    return Forked(program, *words, imports=CLI, cwd=directory, env=env).wait()


def cells_of(tmp_path, *arguments):
    """Run the command in this process, where torch is imported already; return cells and code."""
    try:
        main_preflight([*arguments, "--no-probe", "--json", str(tmp_path / "report.json")])
        code = 0
    except SystemExit as left:
        code = left.code
    return json.loads((tmp_path / "report.json").read_text())["cells"], code


def test_help_and_a_typo_cost_no_heavy_import(tmp_path):
    answer = preflight(tmp_path, "--help")
    assert answer.returncode == 0
    assert answer.stdout.splitlines()[-1] == "HEAVY:"
    answer = preflight(tmp_path, "lora.droput=1")
    assert answer.returncode == 2
    assert answer.stderr.startswith("medvqa: unknown key 'lora.droput'; did you mean")


def test_counted_tokens_are_those_that_the_encoder_makes(encoder, phantoms, shared):
    from tests.unit.contamination.test_overlap import vqa_rad

    for example in (*phantoms[:12], *vqa_rad(shared, "test")[:12]):
        sample = encoder.encode(example)
        count = encoder.count(example)
        assert count.total == sample.num_tokens
        assert count.image == sample.prompt_ids.count(encoder.image_token_id)


def test_samples_that_are_too_long_are_counted_and_named(tiny, phantoms):
    strict = Encoder(tiny.processor, max_length_tokens=66)
    counts = {e.id: strict.count(e).total for e in phantoms[:40]}
    long = [name for name, total in counts.items() if total > 66]
    report = count_tokens(strict, phantoms[:40], at_most=None, seed=0)
    assert report.num_too_long == len(long) > 0
    assert report.too_long[0] == f"{long[0]} ({counts[long[0]]})"
    assert report.longest == max(counts.values())


def test_a_large_pool_is_counted_by_a_seeded_sample_with_all_that_is_consumed(encoder, phantoms):
    always = frozenset(e.id for e in phantoms[:7])
    one, same = (
        count_tokens(encoder, phantoms, at_most=20, seed=1, always=always) for _ in range(2)
    )
    assert one == same
    assert 20 <= one.num_counted <= 27
    assert one.num_samples == len(phantoms)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("qwen3_vl_8b", 8.767e9),
        ("qwen3_vl_2b", 2.127e9),
        ("qwen2_vl_7b", 8.291e9),
        ("qwen2_vl_2b_4bit", 2.209e9),
    ],
)
def test_the_published_models_have_their_published_sizes_without_a_network(name, parameters):
    config = config_of(f"model={name}")
    assert config.model.name in PUBLISHED
    shapes = model_shapes(config)
    assert shapes.num_parameters == pytest.approx(parameters, rel=1e-3)


def test_the_tiny_models_shapes_are_those_of_the_loaded_one(tiny):
    config = config_of("lora.r=4")
    shapes = model_shapes(config)
    assert shapes.num_adapter == sum(p.numel() for _, p in tiny.trainable)
    base = sum(p.numel() for n, p in tiny.model.named_parameters() if "lora_" not in n)
    assert shapes.num_parameters == base


def plain(model, embedded):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.get_base_model().model.language_model(inputs_embeds=embedded, use_cache=False)


def packed(model, embedded):
    from medvqa.config.model import Backend
    from medvqa.fast.decoder import Decoder, Packed
    from medvqa.models.loaded import LoadedModel

    cpu = torch.device("cpu")
    loaded = LoadedModel(model, None, cpu, torch.bfloat16, Backend.transformers, "", False)
    num_tokens = embedded.shape[1]
    positions = torch.arange(num_tokens).expand(3, -1)
    Decoder(loaded).train(Packed(embedded[0], positions, [num_tokens]), training=True)


def kept_by_autograd(model, ids, compute):
    """Return the bytes of all tensors that the backward pass of the language model needs."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    inner = model.get_base_model().model
    embedded = inner.get_input_embeddings()(ids).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        compute(model, embedded)
    return sum(size for size, _ in kept.values())


def random_model(family, num_layers, *, dropout):
    """Return a small model of the family with an adapter in 16 bits, ready for the fused engine."""
    import peft

    from medvqa.models.adapter import target_pattern

    text = {
        "vocab_size": 256, "hidden_size": 192, "intermediate_size": 448, "num_attention_heads": 6,
        "num_key_value_heads": 2, "num_hidden_layers": num_layers, "eos_token_id": 1,
        "bos_token_id": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
        "mrope_section": [6, 5, 5]},
    }  # fmt: skip
    if family == "Qwen3VL":
        text["head_dim"] = 32
        text["rope_parameters"]["mrope_interleaved"] = True
        vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
                  "out_hidden_size": 192, "deepstack_visual_indexes": []}  # fmt: skip
    else:
        vision = {"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 192}
    config = getattr(transformers, f"{family}Config")(text_config=text, vision_config=vision)
    model = getattr(transformers, f"{family}ForConditionalGeneration")(config)
    model = model.to(torch.bfloat16).requires_grad_(False)
    lora = LoraConfig(r=4, dropout=dropout)
    shapes = count_shapes(model, replace(config_of(), lora=lora))
    adapter = peft.LoraConfig(r=4, lora_dropout=dropout, target_modules=target_pattern(model, lora))
    return peft.get_peft_model(model, adapter), shapes


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("family", ["Qwen3VL", "Qwen2VL"])
@pytest.mark.parametrize("engine", ["plain", "fused"])
def test_the_activation_formula_is_what_autograd_keeps(family, engine, dropout):
    num_tokens, found = 512, []
    for num_layers in (1, 3):
        model, shapes = random_model(family, num_layers, dropout=dropout)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                wanted = torch.bfloat16 if engine == "fused" else torch.float32
                parameter.data = parameter.data.to(wanted)
        model.train()
        ids = torch.randint(0, 256, (1, num_tokens))
        compute = packed if engine == "fused" else plain
        found.append(kept_by_autograd(model, ids, compute))
    per_layer = (found[1] - found[0]) / 2 / num_tokens
    assert kept_bytes(shapes, engine, dropout=dropout) == pytest.approx(per_layer, rel=0.05)
    assert {key[1] for key in KEPT} == {"plain", "fused"}


@pytest.mark.parametrize(
    ("overrides", "tokens", "measured_gb"),
    [
        # DESIGN 7, Qwen3-VL-8B on an H100, 322 tokens a sample.
        (["training.fit_micro_batch=false", "training.micro_batch_size=8",
          "training.accumulation_steps=1", "training.engine=plain"], 322, 39.0),
        # docs/engine.md, square pictures.
        (["training.engine=fused"], 287, 27.0),
        (["training.fit_micro_batch=false", "training.gradient_checkpointing=true",
          "training.engine=plain"], 322, 18.5),
    ],
)  # fmt: skip
def test_the_estimate_is_near_the_measured_peaks(overrides, tokens, measured_gb):
    config = config_of("model=qwen3_vl_8b", "model.backend=transformers", *overrides)
    memory = estimate_memory(model_shapes(config), config, longest_tokens=tokens)
    assert memory.total / 1e9 == pytest.approx(measured_gb, rel=0.08)


def test_four_gpus_hold_a_quarter_of_sharded_weights_each_and_the_whole_adapter():
    def estimate(*overrides):
        config = config_of("model=qwen3_vl_8b", "training.engine=plain", *overrides)
        return estimate_memory(model_shapes(config), config, longest_tokens=300)

    whole, part = estimate(), estimate("training.gpus=4", "training.sharding=fsdp2")
    assert part.weights == pytest.approx(whole.weights / 4, rel=1e-6)
    assert part.adapter == whole.adapter
    assert (whole.micro_batch_size, part.micro_batch_size) == (8, 2)


def test_one_cell_is_reported_whole_without_a_weight_being_read(shared, tmp_path):
    no_weights = "import safetensors, torch\nsafetensors.safe_open = torch.load = None\n" + SPY
    answer = preflight(
        tmp_path,
        "experiment=smoke",
        "data=vqa_rad_disjoint",
        f"data.path={shared / 'data' / 'vqa_rad'}",
        "evaluation.bertscore.enabled=false",
        *("--json", "report.json"),
        program=no_weights,
    )
    assert answer.returncode == 0, answer.stderr
    (cell,) = json.loads((tmp_path / "report.json").read_text())["cells"]
    assert cell["samples"] == {"vqa_rad": {"open": 761, "closed": 1034}}
    assert (cell["num_steps"], cell["batch_size"], cell["num_seen"]) == (6, 4, 24)
    assert cell["tokens"]["training"]["num_counted"] == 1795
    assert cell["tokens"]["training"]["quantiles"]["1"] <= TINY.max_length_tokens
    assert cell["contamination"]["sets"]["test"]["image_overlap"] == 0
    assert cell["detectable"]["overall"][0] == 40
    assert cell["memory_bytes"] > 0 and cell["seconds"] is None and cell["problems"] == []
    assert "320 of 12,149" in answer.stdout
    assert "time is unknown: no probe without a GPU" in answer.stdout


def test_a_grid_loads_its_data_once_and_names_the_cells_that_would_fail(
    leak,  # noqa: F811
    tmp_path,
    capsys,
):
    cells, code = cells_of(
        tmp_path,
        *("-m", "experiment=smoke", "data=jsonl", f"data.path={leak}"),
        *("data.evaluation.test.limit=null", "evaluation.bertscore.enabled=false"),
        *("contamination=refuse,drop,report", "model.max_length_tokens=40,512"),
    )
    assert code == 1
    verdicts = {tuple(cell["swept"]): cell["problems"] for cell in cells}
    assert len(verdicts) == 6
    ok = {cell for cell, problems in verdicts.items() if not problems}
    assert ok == {
        (f"contamination={action}", "model.max_length_tokens=512") for action in ("drop", "report")
    }
    (reason,) = verdicts["contamination=refuse", "model.max_length_tokens=512"]
    assert reason.startswith("contamination: 2 of 2 pictures")
    problems = verdicts["contamination=drop", "model.max_length_tokens=40"]
    assert any("longer than model.max_length_tokens=40" in problem for problem in problems)
    assert {cell["num_samples"] for cell in cells} == {5, 7}
    assert capsys.readouterr().err.count("pictures in training") == 1


def test_estimated_tokens_are_exact_for_images_and_not_too_few_for_texts(shared):
    from transformers import Qwen2VLImageProcessor

    from tests.unit.contamination.test_overlap import vqa_rad

    config = config_of("model=qwen3_vl_8b").model
    real = Qwen2VLImageProcessor(
        patch_size=16, size={"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels}
    )
    for example in vqa_rad(shared, "test")[:30:3]:
        count = Estimator(config).count(example)
        (grid,) = real(images=[load_rgb(example.images[0])], return_tensors="pt")["image_grid_thw"]
        assert count.image == grid.prod() // 4
        assert count.text > 40 + len(example.question) / 4


def test_a_hub_model_without_a_network_is_estimated_and_that_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub_answers.cache_clear()
    (cell,), code = cells_of(
        tmp_path,
        *("model=qwen3_vl_8b", "data.limit=8", "data.evaluation.test.limit=8"),
        "evaluation.bertscore.enabled=false",
    )
    assert code == 0
    assert cell["tokens"]["training"]["is_estimate"] and cell["memory_bytes"] > 17e9
    (download,) = cell["downloads"]
    assert (download["name"], download["num_bytes"]) == ("Qwen/Qwen3-VL-8B-Instruct", None)
    shown = capsys.readouterr().out
    assert "tokens of texts are estimated" in shown
    assert "CUDA GPU is visible" in shown or num_cuda_devices(os.environ)


def test_mistakes_in_a_grid_are_one_line_and_name_the_cell(tmp_path):
    answer = preflight(tmp_path, "-m", "lora.dropout=0,2")
    assert answer.returncode == 2
    assert answer.stderr.startswith("medvqa: job lora.dropout=2: lora.dropout must be in [0, 1)")
    answer = preflight(tmp_path, "data=jsonl", "data.path=nowhere")
    assert answer.returncode == 2
    assert len(answer.stderr.splitlines()) == 1


def test_a_probe_gives_a_time(phantoms):
    config = config_of("experiment=smoke", "model.device=cpu")
    plan = plan_curriculum(config.curriculum, phantoms, max_steps=6, batch_size=4, seed=0)
    probe = run_probe(config, plan, phantoms, {"test": phantoms[:8]})
    assert probe.device == "cpu" and probe.peak_gpu_bytes is None
    steps = 6 * probe.step_seconds + 2 * 40 * probe.answer_seconds
    total = total_seconds(probe, config, plan, num_questions=40)
    assert total == pytest.approx(probe.load_seconds + steps)


def test_the_doctor_leaves_in_peace_and_shows_no_key(monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "secret-of-a-test" * 3)
    monkeypatch.setenv("HF_TOKEN", "another-secret")
    main_doctor([])
    shown = capsys.readouterr().out
    assert "secret" not in shown
    assert shown.count("present") == 2
    for subject in ("python", "memory", "disk", "gpu", "model=tiny", "versions", "extra serve"):
        assert f" {subject} " in shown
