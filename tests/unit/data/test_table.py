"""`data=table` reads tables of every format, with columns, splits and pictures of any kind."""

import csv
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from medvqa.config.data import SourceConfig
from medvqa.config.errors import UserError
from medvqa.data.image import load_rgb
from medvqa.data.pool import load_pool
from tests.copies import picture

datasets = pytest.importorskip("datasets")
TEXT = datasets.Value("string")
ROWS = [
    {"scan": "a.jpg", "ask": "Is it a CT?", "reply": "yes", "fold": "train", "level": 1},
    {"scan": "b.jpg", "ask": "Where?", "reply": "left lung", "fold": "train", "level": 3},
    {"scan": "a.jpg", "ask": "How many?", "reply": "2", "fold": "test", "level": 2},
]
COLUMNS = {"image": "scan", "question": "ask", "answer": "reply"}


def pool(path, split="train", **settings):
    settings = {"columns": COLUMNS, **settings}
    return load_pool(SourceConfig(name="table", path=str(path), split=split, **settings), seed=0)


def load(path, split="train", **settings):
    return pool(path, split, **settings).examples


@pytest.fixture
def pictures(tmp_path):
    for seed, name in enumerate(("a.jpg", "b.jpg")):
        (tmp_path / name).write_bytes(picture(seed))
    return tmp_path


def write_csv(path, rows, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


WRITERS = {
    "csv": write_csv,
    "tsv": lambda path, rows: write_csv(path, rows, "\t"),
    "json": lambda path, rows: path.write_text(json.dumps(rows, indent=1)),
    "jsonl": lambda path, rows: path.write_text("\n".join(map(json.dumps, rows))),
    "parquet": lambda path, rows: datasets.Dataset.from_list(rows).to_parquet(path),
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_each_format_gives_the_same_rows(pictures, suffix):
    WRITERS[suffix](pictures / f"train.{suffix}", ROWS[:2])
    first, second = load(pictures, difficulty="level")
    assert (first.id, first.question, first.answers) == ("train-0", "Is it a CT?", ("yes",))
    assert (first.answer_type, second.answer_type) == ("closed", "open")
    assert (first.difficulty, second.difficulty) == (1.0, 3.0)
    assert first.images[0].read() == picture(0)
    assert first.image_ids != second.image_ids


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_column_may_name_the_split(pictures, suffix):
    WRITERS[suffix](pictures / f"mine.{suffix}", ROWS)
    columns = {**COLUMNS, "split": "fold"}
    assert [e.id for e in load(pictures / f"mine.{suffix}", "test", columns=columns)] == ["test-2"]
    everything = load(pictures / f"mine.{suffix}", "all", columns=columns)
    assert [e.split for e in everything] == ["train", "train", "test"]
    with pytest.raises(UserError, match="no rows of split 'dev'; it has test, train"):
        load(pictures / f"mine.{suffix}", "dev", columns=columns)


def test_a_semicolon_and_a_line_break_inside_a_cell_are_csv_too(pictures):
    write_csv(pictures / "train.csv", [{**ROWS[0], "reply": "one;\ntwo"}], ";")
    assert load(pictures)[0].answers == ("one;\ntwo",)


def test_pictures_may_lie_elsewhere_or_in_a_zip_file(pictures, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    write_csv(folder / "train.csv", ROWS[:2])
    with pytest.raises(UserError, match=r"train\.csv\[0\]: cannot read image .*a\.jpg: No such"):
        load(folder)
    assert load(folder, image_root=str(pictures))[1].images[0].read() == picture(1)
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        archive.write(pictures / "a.jpg", "a.jpg")
    zipped = pool(folder, image_root=str(tmp_path / "pictures.zip"), max_bad_rows=1)
    assert [e.images[0].read() for e in zipped.examples] == [picture(0)]
    assert "image b.jpg is not in" in zipped.skipped[0]
    with pytest.raises(UserError, match=r"data\.image_root=.*nowhere is no directory"):
        load(folder, image_root=str(tmp_path / "nowhere"))


def test_a_template_builds_the_path(pictures):
    write_csv(pictures / "train.csv", [{"case": "a", "q": "Where?", "a": "left"}])
    columns = {"image": "{case}.jpg", "image_id": "case"}
    (example,) = load(pictures, columns=columns)
    assert (example.images[0].read(), example.image_ids) == (picture(0), ("a",))


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet"])
def test_a_row_may_show_several_pictures_and_have_several_answers(pictures, suffix):
    row = {
        "files": ["a.jpg", "b.jpg"],
        "qa": {"q": "<image><image> Same?", "texts": ["no", "nope"]},
    }
    WRITERS[suffix](pictures / f"train.{suffix}", [row])
    columns = {"image": "files", "question": "qa.q", "answer": "qa.texts"}
    (example,) = load(pictures, columns=columns)
    assert [i.read() for i in example.images] == [picture(0), picture(1)]
    assert (example.question, example.answers) == ("Same?", ("no", "nope"))


def test_several_columns_may_hold_pictures_some_of_them_empty(tmp_path):
    def stored(seed):
        return {"bytes": picture(seed), "path": None}

    columns = {
        "image_1": [stored(0), stored(2)],
        "image_2": [stored(1), None],
        "question": ["q", "r"],
        "answer": ["a", "b"],
    }
    features = {name: datasets.Image() if "image" in name else TEXT for name in columns}
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(
        tmp_path / "train.parquet"
    )
    two, one = load(tmp_path, columns={"image": ["image_1", "image_2"]})
    assert [i.read() for i in two.images] == [picture(0), picture(1)]
    assert [i.read() for i in one.images] == [picture(2)]


@pytest.mark.parametrize("is_list", [False, True])
def test_a_plain_binary_column_holds_pictures(tmp_path, is_list):
    cells = [[picture(0)], [picture(1)]] if is_list else [picture(0), picture(1)]
    columns = {"image": cells, "question": ["q", "r"], "answer": ["a", "b"]}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "train.parquet")
    examples = load(tmp_path, columns=None)
    assert [e.images[0].read() for e in examples] == [picture(0), picture(1)]
    assert load_rgb(examples[1].images[0]).size == (24, 24)


def test_options_turn_letters_into_texts_and_the_question_closed(pictures):
    row = {**ROWS[0], "reply": "B", "one": " A:CT", "two": " B:MRI", "three": ""}
    write_csv(pictures / "train.csv", [row])
    (example,) = load(pictures, columns={**COLUMNS, "options": ["one", "two", "three"]})
    assert example.options == ("CT", "MRI")
    assert (example.answers, example.answer_type) == (("MRI",), "closed")


def test_stated_types_are_official(pictures):
    write_csv(pictures / "train.csv", [{**ROWS[0], "kind": "OPEN"}, {**ROWS[1], "kind": "closed "}])
    examples = load(pictures, columns={**COLUMNS, "answer_type": "kind"})
    assert [e.answer_type for e in examples] == ["open", "closed"]
    assert {e.type_origin for e in examples} == {"official"}


def test_a_folder_of_pictures_is_a_table_of_labels(tmp_path):
    for seed, label in enumerate(("left_lung", "heart")):
        folder = tmp_path / "train" / label
        folder.mkdir(parents=True)
        (folder / "x.jpg").write_bytes(picture(seed))
    examples = load(tmp_path, columns={"question": {"text": "What is shown?"}})
    assert [(e.question, e.answers[0]) for e in examples] == [
        ("What is shown?", "heart"),
        ("What is shown?", "left lung"),
    ]


def test_the_hubs_image_folder_is_read_with_its_metadata(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "x.jpg").write_bytes(picture(0))
    write_csv(
        tmp_path / "train" / "metadata.csv",
        [{"file_name": "x.jpg", "question": "q", "answer": "a"}],
    )
    assert load(tmp_path, columns=None)[0].images[0].read() == picture(0)


BAD_ROWS = {
    "no picture": ({"scan": ""}, r"\[1\] has no image"),
    "no question": ({"ask": " "}, r"\[1\] has no question"),
    "no answer": ({"reply": None}, r"\[1\] has no answer"),
    "an address": ({"scan": "https://x.org/a.jpg"}, r"\[1\]: image https://x.org/a.jpg is an add"),
    "a level that is none": ({"level": "steep"}, r"\[1\]: difficulty is 'steep', not a number"),
    "a level without end": ({"level": "inf"}, r"\[1\]: difficulty is 'inf', not a number"),
}


@pytest.mark.parametrize(("changed", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_bad_row_is_named_or_skipped(pictures, suffix, changed, message):
    rows = [ROWS[0], {**ROWS[1], **changed}, ROWS[2]]
    WRITERS[suffix](pictures / f"train.{suffix}", rows)
    with pytest.raises(UserError, match=message):
        load(pictures, difficulty="level")
    skipping = pool(pictures, difficulty="level", max_bad_rows=1)
    assert (len(skipping.examples), len(skipping.skipped)) == (2, 1)


def test_a_line_that_is_no_json_is_one_bad_row(pictures):
    (pictures / "train.jsonl").write_text(json.dumps(ROWS[0]) + "\n{oops\n" + json.dumps(ROWS[1]))
    with pytest.raises(UserError, match=r"train\.jsonl, line 2 is no JSON object"):
        load(pictures)
    assert len(pool(pictures, max_bad_rows=1).examples) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.csv", b"scan,ask\n", "no column for answer"),
        ("train.csv", "scan,où".encode("latin-1"), "is not UTF-8 text; convert it"),
        ("train.json", b"{}", "is no list of rows"),
        ("train.json", b'{"a": 1}', "is no list of rows"),
        ("train.json", b"[", "ends before its list of rows does"),
        ("train.txt", b"", "holds no table of split train: .* found a.jpg, b.jpg, train.txt"),
        ("train.parquet", b"PAR1", "cannot load"),
    ],
)
def test_a_file_that_is_no_table_is_one_line(pictures, name, content, message):
    (pictures / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load(pictures)
    assert "\n" not in str(caught.value)


def test_a_place_that_is_not_there_hints_at_the_hub(tmp_path):
    with pytest.raises(UserError, match=r"a data set of the hub is data\.repository=owner/name"):
        load("owner/name")
    with pytest.raises(UserError, match=r"needs data\.path=.* or data\.repository="):
        load_pool(SourceConfig(name="table", split="train"), seed=0)


def test_sixteen_bits_and_turned_pictures_come_out_upright_and_windowed(tmp_path):
    deep = np.linspace(30_000, 31_000, 64 * 48).reshape(48, 64).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (6, 3)).save(tmp_path / "b.jpg", exif=exif)
    write_csv(tmp_path / "train.csv", [{**ROWS[0], "scan": "a.png"}, {**ROWS[1], "scan": "b.jpg"}])
    one, other = (load_rgb(example.images[0]) for example in load(tmp_path))
    assert (np.asarray(one).min(), np.asarray(one).max()) == (0, 255)
    assert other.size == (3, 6)
