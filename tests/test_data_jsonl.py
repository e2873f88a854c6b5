"""A user's own file: what it may hold, and every mistake with its line."""

import json

import pytest
from PIL import Image

from medvqa.config import SourceConfig
from medvqa.data import load_examples
from medvqa.example import UserError

GOOD = {"question": "Is it?", "answer": "yes", "image": "a.png"}


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(("a.png", "b.png")):
        Image.new("L", (4, 4), number).save(tmp_path / name)
    return tmp_path


def load(path, split="train"):
    return load_examples(SourceConfig(name="jsonl", path=str(path), split=split), seed=0)


def written(folder, *rows, name="train.jsonl"):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(lines), encoding="utf-8")
    return folder / name


def test_a_file_and_a_folder_are_read(folder):
    path = written(folder, GOOD, "", {**GOOD, "question": "Where?", "answer": 3})
    assert load(path) == load(folder)
    first, second = load(path)
    assert (first.answer_type, first.type_origin, first.answers) == ("closed", "rule", ("yes",))
    assert (second.answer_type, second.answers) == ("open", ("3",))


def test_several_images_and_answers_and_stated_types(folder):
    row = {
        "id": "x", "question": "Which?", "answers": ["first", "1st"], "images": ["a.png", "b.png"],
        "answer_type": "closed",
    }  # fmt: skip
    (example,) = load(written(folder, row))
    assert (example.id, len(example.images), example.answers) == ("x", 2, ("first", "1st"))
    assert (example.answer_type, example.type_origin) == ("closed", "official")
    assert example.image_ids[0] != example.image_ids[1]


def test_rows_of_another_split_are_left_out(folder):
    path = written(folder, {**GOOD, "split": "train"}, {**GOOD, "split": "test"})
    assert len(load(path, "train")) == len(load(path, "test")) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("question,answer,image", r"line 2 is no JSON object .*is it a CSV\?"),
        ('{"question": "a', "line 2 is no JSON object"),
        ("[1]", "line 2 is no JSON object but list"),
        ({**GOOD, "anser": 1}, "line 2: unknown key 'anser'; did you mean 'answer'"),
        ({**GOOD, "question": " "}, "line 2: no question"),
        ({**GOOD, "answer": ""}, "line 2: 'answer' is empty or not a text"),
        ({**GOOD, "answer": None}, "line 2: 'answer' is empty or not a text"),
        ({**GOOD, "answers": ["a"]}, "line 2: give 'answer' or 'answers'; it has both"),
        ({"question": "q", "image": "a.png"}, "line 2: give 'answer' or 'answers'; it has neither"),
        ({"question": "q", "answers": [], "image": "a.png"}, "'answers' must be a list"),
        ({**GOOD, "image": "none.png"}, r"line 2: image .*none.png does not exist"),
        ({**GOOD, "answer_type": "Closed"}, "must be open or closed"),
        ({**GOOD, "id": "train-1"}, "line 2: id 'train-1' stands in line 1 too"),
    ],
)
def test_every_mistake_names_its_line(folder, row, message):
    with pytest.raises(UserError, match=message):
        load(written(folder, GOOD, row))


def test_other_encodings_and_missing_files_are_named(folder):
    (folder / "latin.jsonl").write_bytes('{"question": "Où?"}'.encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.jsonl is not UTF-8 text \(byte 15\)"):
        load(folder / "latin.jsonl")
    with pytest.raises(UserError, match=r"cannot read .*test.jsonl: No such file"):
        load(folder, "test")
    with pytest.raises(UserError, match="split 'train' has no rows"):
        load(written(folder, ""))
