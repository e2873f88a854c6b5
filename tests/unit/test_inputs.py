"""What a run reads is known before a model is loaded, its pictures and its base included."""

import json
import os
import time

import pytest

from medvqa.inputs import Inputs
from tests import copies
from tests.unit.config.test_compose import config_of


@pytest.fixture
def data(tmp_path):
    """A table whose rows name their pictures themselves."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split, number in (("train", 0), ("test", 1)):
        (folder / f"{split}.jpg").write_bytes(copies.picture(number))
        row = {"question": "q?", "answer": "yes", "image": f"{split}.jpg", "image_id": split}
        (folder / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def hashes(data, *overrides):
    return Inputs(config_of("data=jsonl", f"data.path={data}", *overrides)).row_hashes()


def changed(before, after):
    return {name for name in before if before[name] != after[name]}


def test_a_replaced_picture_of_the_same_name_is_another_input(data):
    before = hashes(data)
    (data / "train.jpg").write_bytes(copies.picture(2))
    assert changed(before, hashes(data)) == {"training/pictures"}


def test_a_copied_file_with_another_time_is_the_same_input(data):
    before = hashes(data)
    os.utime(data / "test.jpg", (time.time() - 99, time.time() - 99))
    assert hashes(data) == before


def test_another_base_in_the_same_directory_is_another_input(data, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    large = bytearray(20 * 2**20)
    (base / "model.safetensors").write_bytes(large)
    before = hashes(data, f"model.path={base}")
    assert hashes(data, f"model.path={base}") == before
    large[-1] = 1
    (base / "model.safetensors").write_bytes(large)
    assert changed(before, hashes(data, f"model.path={base}")) == {"base"}


def test_online_tracking_without_a_key_is_refused_before_data_is_read(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    config = config_of("data=jsonl", "data.path=/nowhere", "tracking.mode=online")
    with pytest.raises(ValueError, match="needs a W&B key"):
        Inputs(config).check()
