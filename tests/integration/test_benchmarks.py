"""The engines' benchmark on the tiny model: what it says is right; how fast it is, is not asked."""

import json
from pathlib import Path

import pytest

from benchmarks.engine.__main__ import Record, engine_parser, main

PARTS = ("training", "answering", "confidence")
ASKED = "plain:plain:1,plain:plain:8,fused:shared_prefix:8,fused:shared_prefix:1:4"


@pytest.fixture(scope="module")
def results(shared, tmp_path_factory) -> Path:
    """Every part, at its least."""
    out = tmp_path_factory.mktemp("benchmark") / "engine.json"
    options = {
        "--vqa-rad": shared / "data" / "vqa_rad",
        "--out": out,
        "--parts": ",".join((*PARTS, "cards", "profile")),  # the last two measure GPUs alone
        "--warm-up": 1,
        "--steps": 1,
        "--adapter-steps": 2,
        "--training": "plain:8,plain:2,fused:8",
        "--answering": ASKED,
        "--num-questions": 8,
        "--new-tokens": 4,
    }
    main(["tiny", *(str(word) for pair in options.items() for word in pair)])
    return out


@pytest.fixture(scope="module")
def rows(results) -> dict[str, list[dict]]:
    return {record["part"]: record["rows"] for record in json.loads(results.read_text()).values()}


def test_every_part_leaves_rows_that_say_when_on_what_and_with_which_code(results):
    records = json.loads(results.read_text())
    assert list(records) == [f"{part} tiny" for part in PARTS]
    for record in records.values():
        assert record["rows"]
        assert record["date"] and record["command"] and "commit" in record["git"]
        assert record["environment"]["packages"]["torch"]


def test_engines_and_micro_batches_have_the_same_losses(rows):
    for kind in ("real", "square"):
        alike = [row for row in rows["training"] if row["pictures"] == kind]
        assert {row["engine"] for row in alike} == {"plain", "fused"}
        assert [row["micro_batch_size"] for row in alike] == [8, 2, 8, 8]
        assert all(row["max_difference"] < 1e-4 for row in alike)
        first, last = alike[0]["losses"]
        assert first != last


def test_answers_are_equal_whatever_the_batch_and_the_decoding(rows):
    assert [row["num_questions"] for row in rows["answering"]] == [8, 8, 8, 8, 4, 4]
    for row in rows["answering"][1:]:
        assert row["equal_answers"]
        assert all(equal["share"] == 1.0 for equal in row["equal_answers"].values())


def test_a_part_measured_again_replaces_its_record_and_no_other(tmp_path):
    out = str(tmp_path / "engine.json")
    options = engine_parser().parse_args(["tiny", "--vqa-rad", "DIR", "--out", out])
    for part, values in (("training", (1, 2)), ("answering", (3,)), ("training", (4,))):
        record = Record(options)
        for value in values:
            record.add(part, {"value": value})
    kept = json.loads((tmp_path / "engine.json").read_text())
    assert {name: [row["value"] for row in record["rows"]] for name, record in kept.items()} == {
        "training tiny": [4],
        "answering tiny": [3],
    }


def test_answers_are_equal_with_and_without_confidence(rows):
    assert [row["batch_size"] for row in rows["confidence"]] == [8, 1]
    assert all(row["equal_answers"] and row["cost"] > -1 for row in rows["confidence"])
