"""alvinl29/medical-imaging-combined: each layout that it may have, and a message for any other."""

import io
import json

import pytest
from PIL import Image

from medvqa.config.data import SourceConfig
from medvqa.config.errors import UserError
from medvqa.data.image import load_rgb
from medvqa.data.pool import load_examples, load_pool

datasets = pytest.importorskip("datasets")
TEXT = datasets.Value("string")
SAID = [
    {"from": "human", "value": "<image>\nIs this a CT?"},
    {"from": "gpt", "value": "Yes"},
    {"from": "human", "value": "Of what?"},
    {"from": "gpt", "value": "The chest."},
]


def config(path, **settings):
    return SourceConfig(name="imaging_combined", path=str(path), split="train", **settings)


def load(path):
    return load_examples(config(path), seed=0)


def picture(gray=30):
    buffer = io.BytesIO()
    Image.new("L", (8, 8), gray).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write(folder, columns, **features):
    features = {"image": datasets.Image(), "question": TEXT, "answer": TEXT, **features}
    features = datasets.Features({name: features.get(name, TEXT) for name in columns})
    datasets.Dataset.from_dict(columns, features=features).to_parquet(
        folder / "train-00000-of-00001.parquet", batch_size=100
    )
    return folder


def conversations(folder, *said, feature=TEXT):
    columns = {"image": [picture(n) for n in range(len(said))], "conversations": list(said)}
    return write(folder, columns, conversations=feature)


def test_question_and_answer_columns_are_read_and_no_others(tmp_path):
    columns = {
        "image": [picture(), picture()],
        "question": ["Is this a CT?", "Of what?"],
        "answer": ["Yes", "The chest."],
        "conversations": [json.dumps(SAID)] * 2,
    }
    first, second = load(write(tmp_path, columns))
    assert (first.id, first.question, first.answers) == ("train-0", "Is this a CT?", ("Yes",))
    assert [first.answer_type, second.answer_type] == ["closed", "open"]
    assert first.images[0].rows.column_names == ["image"]
    assert load_rgb(first.images[0]).getpixel((0, 0)) == (30, 30, 30)


@pytest.mark.parametrize(
    ("said", "feature"),
    [
        (SAID, datasets.List({"from": TEXT, "value": TEXT})),
        (
            [
                {"role": "user" if m["from"] == "human" else "assistant", "content": m["value"]}
                for m in SAID
            ],
            datasets.List({"role": TEXT, "content": TEXT}),
        ),
        (json.dumps(SAID), TEXT),
        (repr(SAID), TEXT),
    ],
    ids=["from_value", "role_content", "json", "python"],
)
def test_each_turn_of_a_conversation_is_an_example(tmp_path, said, feature):
    first, second, third, fourth = load(conversations(tmp_path, said, said, feature=feature))
    assert [e.id for e in (first, second, third)] == ["train-0-0", "train-0-1", "train-1-0"]
    assert (first.question, first.answers) == ("Is this a CT?", ("Yes",))
    assert (second.question, second.answers) == ("Of what?", ("The chest.",))
    assert (first.answer_type, second.answer_type) == ("closed", "open")
    assert first.image_ids == second.image_ids != third.image_ids == fourth.image_ids


def test_a_row_with_a_bad_turn_is_named_or_skipped_as_a_whole(tmp_path):
    conversations(tmp_path, json.dumps(SAID), json.dumps(SAID[:3]))
    with pytest.raises(UserError, match=r"train\[1\]: conversations has no answer to its last"):
        load(tmp_path)
    pool = load_pool(config(tmp_path, max_bad_rows=1), seed=0)
    assert [e.id for e in pool.examples] == ["train-0-0", "train-0-1"]
    assert len(pool.skipped) == 1


def test_a_text_that_is_no_conversation_is_named(tmp_path):
    conversations(tmp_path, "What is it? A lung.")
    with pytest.raises(UserError, match=r"train\[0\]: conversations is no list of messages: 'What"):
        load(tmp_path)


def test_other_columns_are_named(tmp_path):
    write(tmp_path, {"image": [picture()], "text": ["a"], "label": ["b"]})
    with pytest.raises(UserError, match="no column for question; it has image, text, label"):
        load(tmp_path)
    write(tmp_path, {"picture": ["a"], "question": ["b"], "answer": ["c"]})
    with pytest.raises(UserError, match=r"no column|No such file"):
        load(tmp_path)


def test_a_path_in_place_of_a_picture_is_named(tmp_path):
    write(tmp_path, {"image": ["images/a.png"], "question": ["b"], "answer": ["c"]}, image=TEXT)
    with pytest.raises(UserError, match=r"cannot read image .*images/a\.png: No such file"):
        load(tmp_path)


def test_an_empty_split_and_a_missing_file_are_errors(tmp_path):
    with pytest.raises(UserError, match="holds no table of split train"):
        load(tmp_path)
    conversations(tmp_path)
    with pytest.raises(UserError, match=r'cannot load .*"train" corresponds to no data'):
        load(tmp_path)
