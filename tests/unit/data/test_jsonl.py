"""A user's own file: what it may hold, and every mistake with its line."""

import json

import pytest
from PIL import Image

from medvqa.config.data import SourceConfig
from medvqa.config.errors import UserError
from medvqa.data.pool import load_examples

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
    assert [e.id for e in load(path, "train")] == ["train-1"]
    assert [e.id for e in load(path, "test")] == ["train-2"]
    with pytest.raises(UserError, match="no rows of split 'tset'; it has test, train"):
        load(path, "tset")


def test_a_stated_image_joins_files_and_yes_no_values_become_words(folder):
    rows = [{**GOOD, "image": name, "image_id": 7, "answer": True} for name in ("a.png", "b.png")]
    first, second = load(written(folder, *rows))
    assert first.image_ids == second.image_ids == ("7",)
    assert (first.answers, first.answer_type) == (("yes",), "closed")


def test_options_and_a_difficulty_are_read(folder):
    row = {**GOOD, "answer": "B", "options": ["CT", "MRI"], "difficulty": "hard"}
    (example,) = load(written(folder, row))
    assert (example.options, example.answers) == (("CT", "MRI"), ("MRI",))
    assert (example.answer_type, example.difficulty) == ("closed", 3.0)
    with pytest.raises(UserError, match="line 1: answer 'PET' is none of the options"):
        load(written(folder, {**row, "answer": "PET"}))


def test_the_mark_that_windows_puts_in_front_is_no_error(folder):
    path = written(folder, GOOD)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(load(path)) == 1


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
        ({**GOOD, "image": "none.png"}, r"line 2: cannot read image .*none.png: No such file"),
        ({**GOOD, "image": "x" * 999}, "line 2: cannot read image .*: File name too long"),
        ({**GOOD, "image": True}, "line 2: 'image' is empty or not a text"),
        ({**GOOD, "answer": float("nan")}, r"line 2 is no JSON object \(NaN is no value"),
        (
            '{"question": "q", "answer": "a", "answer": "b"}',
            "line 2 .*key 'answer' stands in it twice",
        ),
        ("[", "line 2 is no JSON object .*; write one object per line"),
        ({**GOOD, "id": None}, "line 2: 'id' must be a text or a whole number, got None"),
        ({**GOOD, "split": "train"}, "line 1: no split, though other lines name theirs"),
        (
            {"question": "q", "answer": "a", "images": ["a.png", "b.png"], "image_id": "p"},
            "line 2: 'image_id' names one image, but there are 2",
        ),
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
    with pytest.raises(UserError, match=r"has no test.jsonl; splits found: latin"):
        load(folder, "test")
    with pytest.raises(UserError, match=r"cannot read .*none.jsonl: No such file"):
        load(folder / "none.jsonl")
    with pytest.raises(UserError, match="split 'train' has no rows"):
        load(written(folder, ""))
