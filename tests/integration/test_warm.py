"""A warm worker's model: whole runs and leaks, as a fresh process would have them."""

import dataclasses
from types import SimpleNamespace

import torch

from medvqa.config.compose import resolved
from medvqa.config.lora import LoraConfig
from medvqa.config.training import Engine, TrainingConfig
from medvqa.config.typed import typed
from medvqa.fast.choice import make_engine
from medvqa.models.load import load_model
from medvqa.run import ProcessState, run
from medvqa.sweep import warm
from medvqa.sweep.warm import WarmModels
from medvqa.tracking.record import read_lines
from medvqa.training.optimizer import AdapterOptimizer
from tests.conftest import TINY
from tests.unit.config.test_compose import composed
from tests.unit.sweep.test_warm import load


def adapter(loaded):
    return {name: parameter.detach().clone() for name, parameter in loaded.trainable}


def test_only_gpu_memory_beyond_that_of_the_first_job_costs_a_new_process(models, monkeypatch):
    """The first job leaves what every job uses, such as unpacked scales of a base in 4 bits."""
    held = iter([800, 900, 1100])
    monkeypatch.setattr(warm, "_gpu_bytes", lambda loaded: next(held) * 2**20)
    kept = []
    for seed in (1, 2, 3):
        load(models, seed=seed)
        kept.append(models.release())
    assert kept == [True, True, False]


def test_captured_passes_and_features_that_are_kept_are_no_leak(models, encoder, monkeypatch):
    loaded = load(models, seed=1)
    engine = make_engine(Engine.fused, loaded, encoder)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1000)
    loaded = dataclasses.replace(loaded, device=torch.device("cuda"))
    loaded.engines["fused"] = engine
    loaded.features.keep("a picture", torch.zeros(25))
    engine.decoder.graphs._captured["a pass"] = SimpleNamespace(num_bytes=300)  # as on a GPU
    assert warm._gpu_bytes(loaded) == 1000 - 100 - 300


def test_the_adapter_of_the_next_job_lies_where_captured_passes_read_it(models):
    """A replay reads fixed addresses; without this, each job would capture its passes anew."""
    low = dataclasses.replace(load(models, seed=1), dtype=torch.bfloat16)
    places = []
    for seed in (1, 2):
        first = adapter(load(models, seed=seed))
        AdapterOptimizer(low, TrainingConfig(), in_compute_type=True)
        places.append([parameter.data_ptr() for _, parameter in low.trainable])
        for name, parameter in low.trainable:
            assert torch.equal(parameter, first[name].bfloat16())
        assert models.release()
    assert places[0] == places[1]


def test_the_adapter_is_that_of_a_fresh_process_whatever_ran_before(models):
    loaded = load(models, seed=1)
    first = adapter(loaded)
    for _, parameter in loaded.trainable:
        parameter.data = torch.randn_like(parameter).bfloat16()  # as the fused engine leaves it
        parameter.grad = torch.ones_like(parameter)
    assert models.release()
    again = load(models, seed=1)
    assert again is loaded
    assert all(torch.equal(value, first[name]) for name, value in adapter(again).items())
    assert all(p.dtype is torch.float32 and p.grad is None for _, p in again.trainable)
    assert load(WarmModels(), seed=1) is not loaded


def test_what_a_job_holds_on_to_costs_the_next_one_a_new_process(models, monkeypatch):
    monkeypatch.setattr(warm, "HOST_LEAK_BYTES", 64 * 2**20)
    load(models, seed=1)
    assert models.release()
    leak = bytearray(b"x") * (192 * 2**20)
    load(models, seed=2)
    assert not models.release()
    del leak


def test_pictures_that_are_kept_for_the_next_job_are_no_leak(models, monkeypatch):
    monkeypatch.setattr(warm, "HOST_LEAK_BYTES", 64 * 2**20)
    load(models, seed=1)
    assert models.release()
    models.patches.keep("picture", torch.ones(48 * 2**20), torch.tensor([1, 4, 4]))
    load(models, seed=2)
    assert models.release()
    models.load(TINY, LoraConfig(r=8, alpha=8), gradient_checkpointing=False, seed=2)
    assert models.patches.num_bytes == 0, "another model's settings may cut pictures differently"


def test_a_fused_engine_changes_nothing_for_the_next_job_of_that_engine(models, tmp_path):
    """The adapter computes in the engine's type, in a fresh process's first answer too."""

    def cell(name, seed, load, patches=None):
        overrides = (
            "experiment=smoke",
            "training.max_steps=3",
            "training.engine=fused",
            "evaluation.bertscore.enabled=false",
            "tracking.pictures=false",
        )
        values = resolved(composed(*overrides, "data.evaluation.test.limit=8", f"seed={seed}"))
        settings = {"config": values, "overrides": [], "run_id": name}
        directory = tmp_path / name
        run(typed(values), directory, settings, ProcessState(load, patches))
        return tmp_path / name

    cell("first", 1, models.load, models.patches)
    assert models.release()
    assert models.patches.num_bytes > 0
    served, fresh = cell("warm", 2, models.load, models.patches), cell("fresh", 2, load_model)
    adapter = "adapter/adapter_model.safetensors"
    assert (served / adapter).read_bytes() == (fresh / adapter).read_bytes()
    for phase in ("zero_shot", "final"):
        name = f"evaluation/{phase}/test/predictions.jsonl"
        assert (served / name).read_bytes() == (fresh / name).read_bytes()
    losses = [[row["loss"] for row in read_lines(d / "metrics.jsonl")] for d in (served, fresh)]
    assert losses[0] == losses[1]
