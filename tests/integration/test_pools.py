"""The named pools are pinned, and what is left out of them shows."""

import json

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from medvqa.cli import register
from medvqa.data.pool import load_pool
from tests import copies
from tests.conftest import ROOT

pytest.importorskip("datasets")
CACHE = "huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE"


def data_config(*overrides):
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        return OmegaConf.to_object(compose("config", overrides=list(overrides)).data)


@pytest.fixture
def sources(tmp_path, monkeypatch):
    monkeypatch.setattr(CACHE, str(tmp_path / "assets"))
    copies.robailleo(tmp_path / "robailleo")
    copies.vqa_med_2019(tmp_path / "vqa_med_2019")
    copies.imaging_combined(tmp_path / "imaging_combined")
    (tmp_path / "pubmed_vision").mkdir()
    copies.pubmed_vision(tmp_path / "pubmed_vision")
    return tmp_path


def closed_mix(folder, *overrides):
    parts = ("robailleo", "vqa_med_2019", "imaging_combined")
    return describe(
        "data=closed_mix",
        *(f"data.parts.{name}.path={folder / name}" for name in parts),
        *(f"data.parts.{name}.quota={size}" for name, size in zip(parts, (12, 9, 8), strict=True)),
        *overrides,
    )


def pubmed_vision(folder, *overrides):
    path = f"data.path={folder / 'pubmed_vision'}"
    return describe("data=pubmed_vision", path, "data.limit=10", *overrides)


def describe(*overrides):
    config = data_config(*overrides)
    pool = load_pool(config, seed=config.seed)
    return [example.id for example in pool.examples], pool.describe()


def test_the_recipes_are_12149_and_6666_samples():
    parts = data_config("data=closed_mix").parts
    quotas = {name: part.quota for name, part in parts.items()}
    assert quotas == {"robailleo": 3834, "vqa_med_2019": 4158, "imaging_combined": 4157}
    assert sum(quotas.values()) == 12149
    assert {part.split for part in parts.values()} == {"train"}
    assert data_config("data=pubmed_vision").limit == 6666
    for option, split in (("closed_mix", "test"), ("pubmed_vision", "test")):
        (evaluated,) = data_config(f"data={option}").evaluation.values()
        assert (evaluated.name, evaluated.split) == ("vqa_rad", split)


def test_the_open_pool_is_trained_on_open_questions_unless_a_curriculum_is_chosen():
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        for chosen, expected in (([], "open_only"), (["curriculum=mixed"], "mixed")):
            config = compose("config", ["data=pubmed_vision", *chosen])
            assert config.curriculum.name == expected


@pytest.mark.parametrize("pool", [closed_mix, pubmed_vision])
def test_the_same_seed_and_sources_give_the_same_ids_and_hash(sources, pool):
    (ids, first), (again, second), (others, third) = (
        pool(sources),
        pool(sources),
        pool(sources, "data.seed=1"),
    )
    assert ids == again
    assert first == second
    assert set(ids) != set(others)
    assert first["sha256"] != third["sha256"]


def test_run_json_says_for_each_part_what_was_taken_and_what_was_not(sources):
    path = sources / "vqa_med_2019/ImageClef-2019-VQA-Med-Training/QAPairsByCategory"
    with (path / "C2_Plane_train.txt").open("a") as file:
        file.write("synpic99|what plane?|axial\n")
    ids, described = closed_mix(sources, "data.parts.vqa_med_2019.max_bad_rows=1")
    parts = described["parts"]
    counts = ("num_available", "num_sampled", "num_not_sampled", "num_skipped")
    assert {name: tuple(part[count] for count in counts) for name, part in parts.items()} == {
        "robailleo": (30, 12, 18, 0),
        "vqa_med_2019": (32, 9, 23, 1),
        "imaging_combined": (30, 8, 22, 0),
    }
    assert len(ids) == described["num_examples"] == 29
    assert described["num_skipped"] == 1
    assert "image synpic99.jpg is not in Train_images" in described["skipped"][0]


@pytest.mark.parametrize("is_sampled", [True, False])
def test_a_change_of_one_source_row_changes_a_hash(sources, is_sampled):
    ids, before = closed_mix(sources)
    path = sources / "vqa_med_2019/ImageClef-2019-VQA-Med-Training/QAPairsByCategory"
    taken = [f"vqa_med_2019/train-synpic{n}-organ" in ids for n in range(8)]
    name = f"synpic{taken.index(is_sampled)}|"
    file = path / "C3_Organ_train.txt"
    text = file.read_text()
    file.write_text(text.replace(f"{name}what organ?|lung", f"{name}what organ?|liver"))
    assert file.read_text() != text
    _, after = closed_mix(sources)
    # What was not sampled cannot change the pool, but the source is not the same any more.
    assert (before["sha256"] != after["sha256"]) is is_sampled
    hashes = [
        {part: described["parts"][part]["sha256"] for part in described["parts"]}
        for described in (before, after)
    ]
    changed = {part for part in hashes[0] if hashes[0][part] != hashes[1][part]}
    assert changed == {"vqa_med_2019"}


def test_a_change_of_one_index_row_changes_the_pool(sources):
    ids, before = pubmed_vision(sources)
    file = sources / "pubmed_vision" / "PubMedVision_InstructionTuning_VQA.json"
    rows = json.loads(file.read_text())
    rows[int(ids[4].split("-")[1])]["conversations"][1]["value"] = "Something else."
    file.write_text(json.dumps(rows))
    same_ids, after = pubmed_vision(sources)
    assert ids == same_ids
    assert before["sha256"] != after["sha256"]
