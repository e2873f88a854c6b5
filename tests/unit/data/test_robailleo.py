"""robailleo: a small copy in the hub's layout; three columns leak the answer."""

import io
import json

import pytest
from PIL import Image

from medvqa.config.data import SourceConfig
from medvqa.config.errors import UserError
from medvqa.data.image import load_rgb
from medvqa.data.pool import load_examples
from medvqa.models.prompt import user_message

datasets = pytest.importorskip("datasets")
TEXT = datasets.Value("string")
LEAK = "LEAKED-a1b2"
FEATURES = {
    "image": datasets.Image(),
    "conversations": datasets.List({"content": TEXT, "role": TEXT}),
    "image_description": TEXT,
    "question": TEXT,
    "answer": TEXT,
    "dataset_source": TEXT,
    "modality": TEXT,
    "body_part": TEXT,
    "sample_id": TEXT,
    "instruction": TEXT,
}


def load(path, split="train"):
    return load_examples(SourceConfig(name="robailleo", path=str(path), split=split), seed=0)


def row(sample_id, question, answer, gray=10):
    buffer = io.BytesIO()
    Image.new("L", (8, 8), gray).save(buffer, "PNG")
    leak = f"{LEAK} Question: {question} Answer: {answer}"
    return {
        "image": {"bytes": buffer.getvalue(), "path": None},
        "conversations": [
            {"content": leak, "role": "user"},
            {"content": LEAK, "role": "assistant"},
        ],
        "image_description": leak,
        "question": question,
        "answer": answer,
        "dataset_source": "VQA-RAD",
        "modality": "X-ray",
        "body_part": "chest",
        "sample_id": sample_id,
        "instruction": leak,
    }


ROWS = [
    row("vqa_0", "is the heart enlarged?", "yes"),
    row("roco_7", "Describe this medical image.", "Chest radiograph with an effusion.", gray=20),
]


def write(folder, split, rows, without=()):
    columns = {name: [r[name] for r in rows] for name in FEATURES if name not in without}
    features = datasets.Features({name: FEATURES[name] for name in columns})
    (folder / "data").mkdir(exist_ok=True)
    datasets.Dataset.from_dict(columns, features=features).to_parquet(
        folder / "data" / f"{split}-00000-of-00001.parquet"
    )
    return folder


def test_rows_come_from_question_answer_and_sample_id(tmp_path):
    yes_no, caption = load(write(tmp_path, "train", ROWS))
    assert (yes_no.id, yes_no.question, yes_no.answers) == (
        "vqa_0",
        "is the heart enlarged?",
        ("yes",),
    )
    assert (yes_no.answer_type, caption.answer_type) == ("closed", "open")
    assert (caption.id, caption.type_origin, caption.source) == ("roco_7", "rule", "robailleo")
    assert load_rgb(caption.images[0]).getpixel((0, 0)) == (20, 20, 20)


def test_nothing_of_the_other_columns_is_in_an_example_or_its_prompt(tmp_path):
    for example in load(write(tmp_path, "train", ROWS)):
        prompt = user_message(example.question, num_images=len(example.images))
        assert LEAK not in json.dumps(prompt)
        assert LEAK not in repr(example)
        assert not any(answer in json.dumps(prompt) for answer in example.answers)
        # An image reads its own row again, and can see no other column there.
        assert [image.rows.column_names for image in example.images] == [["image"]]


def test_all_joins_both_splits(tmp_path):
    write(tmp_path, "train", ROWS[:1])
    write(tmp_path, "validation", ROWS[1:])
    assert [(e.id, e.split) for e in load(tmp_path, "all")] == [
        ("vqa_0", "train"),
        ("roco_7", "validation"),
    ]


def test_an_id_that_occurs_twice_is_an_error(tmp_path):
    with pytest.raises(UserError, match="robailleo: 1 ids occur twice, first 'vqa_0'"):
        load(write(tmp_path, "train", [ROWS[0], ROWS[0]]))


@pytest.mark.parametrize(
    ("column", "role"), [("question", "question"), ("answer", "answer"), ("sample_id", "id")]
)
def test_an_empty_cell_is_named(tmp_path, column, role):
    write(tmp_path, "train", [ROWS[0], {**ROWS[1], column: ""}])
    with pytest.raises(UserError, match=rf"train\[1\] has no {role}"):
        load(tmp_path)


def test_a_missing_column_names_the_columns_found(tmp_path):
    write(tmp_path, "train", ROWS, without=("answer", "sample_id"))
    with pytest.raises(UserError, match=r"answer, id \(sample_id\); it has image"):
        load(tmp_path)


def test_an_unknown_split_and_a_missing_file_say_what_is_there(tmp_path):
    with pytest.raises(UserError, match="no split 'test'; it has train, validation, all"):
        load(tmp_path, "test")
    with pytest.raises(UserError, match="holds no table of split train"):
        load(tmp_path)
