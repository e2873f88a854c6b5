"""Tables with cells or keys that would be lost or misread in silence are refused."""

import json
import os

import pytest

from medvqa.config.data import SourceConfig
from medvqa.config.errors import UserError
from medvqa.data.pool import load_pool
from medvqa.data.storage.json_list import JsonList
from tests import copies


@pytest.fixture
def load(tmp_path):
    (tmp_path / "a.png").write_bytes(copies.picture(0))

    def load(name, text):
        (tmp_path / name).write_text(text)
        source = SourceConfig(name="table", path=str(tmp_path / name), split="train")
        return load_pool(source, seed=0).examples

    return load


ROW = '{"question": "q", "answer": %s, "image": "a.png"}'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "question,answer,answer,image\nq,yes,no,a.png\n", "column answer stands twice"),
        ("t.csv", "question,answer,image\nq,nan,a.png\n", "has no answer"),
        ("t.json", f"[{ROW % 'NaN'}]", "has no answer"),
        ("t.json", f"[{ROW % ('9' * 5000)}]", "row 0 is no JSON"),
        ("t.json", '[{"answer": "no", "answer": "yes"}]', "key 'answer' stands in it twice"),
        ("t.jsonl", '{"answer": "no", "answer": "yes"}\n' + ROW % '"yes"', "stands in it twice"),
        ("t.jsonl", ROW % json.dumps("a\0b"), r"null character \(U\+0000\)"),
    ],
)
def test_what_would_be_lost_or_misread_is_an_error(load, name, text, message):
    with pytest.raises(UserError, match=message):
        load(name, text)
    assert [e.answers for e in load("good.jsonl", ROW % "true")] == [("yes",)]


def test_a_list_whose_name_is_no_utf8_is_read_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVQA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("medvqa.data.image.SETTLED_S", 0.0)
    path = tmp_path / os.fsdecode(b"caf\xe9.json")
    path.write_text(f"[{ROW % '1'}]")
    assert [len(JsonList(path)) for _ in range(2)] == [1, 1]
