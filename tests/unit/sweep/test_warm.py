"""A warm worker's model: each job finds it as a fresh process would, and leaves nothing in it."""

import torch

from medvqa.config.lora import LoraConfig
from medvqa.sweep.job import Job
from tests.conftest import TINY
from tests.integration.test_scheduler import make_jobs

LORA = LoraConfig(r=4, alpha=8)


def load(models, *, seed):
    return models.load(TINY, LORA, gradient_checkpointing=False, seed=seed)


def test_each_job_has_its_lengths_checked_also_where_the_model_is_loaded_already(models):
    seen = []
    for seed in (1, 2):
        loaded = models.load(TINY, LORA, gradient_checkpointing=False, seed=seed, check=seen.append)
    assert seen == [loaded.processor, loaded.processor]


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
