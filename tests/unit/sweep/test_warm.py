"""A warm worker's model: each job finds it as a fresh process would, and leaves nothing in it."""

import pytest
import torch

from medvqa.config.compose import resolved
from medvqa.config.lora import LoraConfig
from medvqa.config.training import Engine
from medvqa.config.typed import typed
from medvqa.fast.choice import make_engine
from medvqa.models.load import load_model
from medvqa.run import ProcessState, run
from medvqa.sweep import warm
from medvqa.sweep.job import Job
from medvqa.sweep.warm import WarmModels
from medvqa.tracking.record import read_lines
from tests.conftest import TINY
from tests.integration.test_scheduler import make_jobs
from tests.unit.config.test_compose import composed

LORA = LoraConfig(r=4, alpha=8)


def load(models, *, seed):
    return models.load(TINY, LORA, gradient_checkpointing=False, seed=seed)


@pytest.fixture
def models():
    return WarmModels()


def adapter(loaded):
    return {name: parameter.detach().clone() for name, parameter in loaded.trainable}


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


def test_each_job_has_its_lengths_checked_also_where_the_model_is_loaded_already(models):
    seen = []
    for seed in (1, 2):
        loaded = models.load(TINY, LORA, gradient_checkpointing=False, seed=seed, check=seen.append)
    assert seen == [loaded.processor, loaded.processor]


def test_what_a_job_holds_on_to_costs_the_next_one_a_new_process(models, monkeypatch):
    monkeypatch.setattr(warm, "HOST_LEAK_BYTES", 64 * 2**20)
    load(models, seed=1)
    assert models.release()
    leak = bytearray(b"x") * (192 * 2**20)
    load(models, seed=2)
    assert not models.release()
    del leak


def test_only_gpu_memory_beyond_that_of_the_first_job_costs_a_new_process(models, monkeypatch):
    """The first job leaves what every job uses, such as unpacked scales of a base in 4 bits."""
    held = iter([800, 900, 1100])
    monkeypatch.setattr(warm, "_gpu_bytes", lambda loaded: next(held) * 2**20)
    kept = []
    for seed in (1, 2, 3):
        load(models, seed=seed)
        kept.append(models.release())
    assert kept == [True, True, False]


def test_captured_passes_are_dropped_with_the_adapter_of_their_job(models, encoder):
    loaded = load(models, seed=1)
    graphs = make_engine(Engine.fused, loaded, encoder).decoder.graphs
    graphs._captured["a pass"] = object()  # as on a GPU
    assert models.release()
    assert len(graphs) == 0


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
            "training.engine=fused",
            "evaluation.bertscore.enabled=false",
        )
        values = resolved(composed(*overrides, "data.evaluation.test.limit=16", f"seed={seed}"))
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


def test_features_of_pictures_serve_the_next_job_of_the_same_data_only(models):
    loaded = load(models, seed=1)
    features = loaded.features
    models.expect({"name": "phantom", "seed": 0})
    picture, grid = torch.zeros(16, 8), torch.tensor([1, 4, 4])
    features.keep("picture", torch.zeros(4, 8))
    models.patches.keep("picture", picture, grid)
    models.expect({"name": "phantom", "seed": 0})
    assert (features.num_bytes, models.patches.num_bytes) == (128, 512 + grid.nbytes)
    models.expect({"name": "phantom", "seed": 1})
    assert (features.num_bytes, models.patches.num_bytes) == (0, 0)


def test_jobs_of_another_model_adapter_or_engine_do_not_share_a_process(tmp_path):
    (job,) = make_jobs(tmp_path, 1)

    def changed(**values):
        return Job(**{**vars(job), "config": {**job.config, **values}})

    training = job.config["training"]
    assert changed(seed=2).engine == job.engine
    others = [
        changed(model="other"),
        changed(lora={"r": 8}),
        changed(training={**training, "gradient_checkpointing": True}),
        changed(training={**training, "engine": "fused"}),
    ]
    assert len({job.engine, *(other.engine for other in others)}) == 5
