"""Tables with cells or keys that would be lost or misread in silence are refused."""

import json
import os

import pytest

from medvqa.config.data import SourceConfig
from medvqa.config.errors import UserError
from medvqa.data.pool import load_pool
from medvqa.data.storage.hub import check_shards
from medvqa.data.storage.json_list import JsonList
from medvqa.data.storage.row_files import open_table
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
        ("t.jsonl", ROW % json.dumps("\u200b"), r"'\\u200b' has no visible character"),
        ("t.csv", 'image,answer,question\na.png,no,"q\na.png,no,q\n', "mark not closed"),
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


def test_a_list_in_a_cell_of_a_table_is_several_right_answers(load):
    rows = load("t.csv", 'question,answer,image\nq,"[""yes"", ""it is""]",a.png\n')
    assert [row.answers for row in rows] == [("yes", "it is")]


def test_two_tables_of_one_split_are_not_chosen_from_in_silence(load, tmp_path):
    load("train.jsonl", ROW % '"no"')
    (tmp_path / "train.csv").write_text("question,answer,image\nq,yes,a.png\n")
    with pytest.raises(UserError, match=r"holds train\.csv and train\.jsonl; give data\.path="):
        open_table(tmp_path, "train")


def test_a_pipe_is_no_table(tmp_path):
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(UserError, match=r"cannot read .*t\.csv: it is no regular file"):
        open_table(tmp_path / "t.csv", "train")


def test_a_missing_shard_is_named(tmp_path):
    names = [f"{tmp_path}/train-0000{n}-of-00004.parquet" for n in (0, 3)]
    with pytest.raises(UserError, match=r"train-00001-of-00004\.parquet and 1 more of 4 files"):
        check_shards(names)
    check_shards([f"{tmp_path}/test-0000{n}-of-00002.parquet" for n in range(2)])
