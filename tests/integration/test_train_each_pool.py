"""Each pool trains the tiny model from local copies in the true layout, with all its records."""

import json

import pytest
from hydra import compose, initialize_config_dir

from medvqa.cli import register
from medvqa.config.compose import resolved
from medvqa.config.typed import typed
from medvqa.run import ProcessState, run
from medvqa.tracking.record import read_lines
from tests import copies
from tests.conftest import ROOT

pytest.importorskip("datasets")
SHORT = (
    *("contamination=report", "tracking=disabled", "training.max_steps=2"),
    "tracking.pictures=false",
    *("training.micro_batch_size=4", "training.warmup_steps=0", "evaluation.zero_shot=false"),
    *("evaluation.bertscore.enabled=false", "evaluation.max_new_tokens=2"),
)
PARTS = ("robailleo", "vqa_med_2019", "imaging_combined")


def closed_mix(folder, vqa_rad):
    for name in PARTS:
        getattr(copies, name)(folder / name)
    return [
        "data=closed_mix",
        *(f"data.parts.{name}.path={folder / name}" for name in PARTS),
        *(f"data.parts.{name}.quota=8" for name in PARTS),
        f"data.evaluation.test.path={vqa_rad}",
        "data.evaluation.test.limit=6",
    ]


def pubmed_vision(folder, vqa_rad):
    copies.pubmed_vision(folder)
    return [
        *("data=pubmed_vision", f"data.path={folder}", "data.limit=24"),
        f"data.evaluation.test.path={vqa_rad}",
        "data.evaluation.test.limit=6",
    ]


def vqa_rad(folder, vqa_rad):
    return ["data=vqa_rad", f"data.path={vqa_rad}", "data.evaluation.test.limit=6"]


def mixture(folder, vqa_rad):
    """A YAML file of the user's own: real pictures, and figures of papers, several a question."""
    copies.pubmed_vision(folder)
    (folder / "data").mkdir()
    (folder / "data" / "ours.yaml").write_text(f"""
name: mixture
split: train
limit: 40
parts:
  rad: {{name: vqa_rad, split: train, weight: 3, path: {vqa_rad}}}
  figures: {{name: pubmed_vision, split: alignment, weight: 1, path: {folder}}}
evaluation:
  test: {{name: vqa_rad, split: test, path: {vqa_rad}, limit: 6}}
""")
    return ["data=ours", f"hydra.searchpath=[file://{folder}]"]


EXPECTED = {
    closed_mix: {"robailleo": 8, "vqa_med_2019": 8, "imaging_combined": 8},
    pubmed_vision: {"pubmed_vision": 24},
    vqa_rad: {"vqa_rad": 1797},
    mixture: {"rad": 30, "figures": 10},
}


@pytest.mark.parametrize("pool", EXPECTED, ids=lambda pool: pool.__name__)
def test_a_pool_trains_and_is_evaluated(pool, shared, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets")
    )
    (tmp_path / "copy").mkdir()
    overrides = [*SHORT, *pool(tmp_path / "copy", shared / "data" / "vqa_rad")]
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        values = resolved(compose("config", overrides))
    directory = tmp_path / "run"
    settings = {"config": values, "overrides": overrides, "run_id": "0", "sweep": None}
    run(typed(values), directory, settings, ProcessState())
    record = json.loads((directory / "run.json").read_text())
    assert record["state"] == "finished"
    parts = record["data"]["training"]["parts"]
    assert {name: part["num_sampled"] for name, part in parts.items()} == EXPECTED[pool]
    consumed = [name for row in read_lines(directory / "order.jsonl") for name in row["ids"]]
    assert len(consumed) == 8
    assert len(list(directory.glob("evaluation/final/*/predictions.jsonl"))) == 1
    assert (directory / "adapter" / "adapter_model.safetensors").is_file()
