"""VQA-RAD: the authors' real files, and a small copy in the hub's layout."""

import io
import json
import shutil
from collections import Counter

import pytest
from PIL import Image

from medvqa.config.data import SourceConfig
from medvqa.config.errors import UserError
from medvqa.data.image import load_rgb
from medvqa.data.pool import load_examples
from medvqa.data.vqa_rad import FOLDS, IMAGE_FOLDER, JSON_NAME, disjoint_test_images


def load(path, split):
    return load_examples(SourceConfig(name="vqa_rad", path=str(path), split=split), seed=0)


@pytest.fixture(scope="module")
def real(shared):
    return shared / "data" / "vqa_rad"


def test_the_counts_are_the_published_ones(real):
    test, train, everything = (load(real, split) for split in ("test", "train", "all"))
    assert (len(test), len(train), len(everything)) == (451, 1797, 2248)
    assert Counter(e.answer_type for e in test) == {"closed": 272, "open": 179}
    assert Counter(e.split for e in everything) == {"train": 1797, "test": 451}
    assert {e.type_origin for e in everything} == {"official"}


def test_dirty_values_are_cleaned(real):
    everything = load(real, "all")
    # "CLOSED " with a trailing space counts as closed; integer answers are texts.
    assert Counter(e.answer_type for e in everything) == {"closed": 1299, "open": 949}
    assert all(isinstance(a, str) and a == a.strip() and a for e in everything for a in e.answers)


def test_the_standard_split_shares_its_pictures(real):
    images = [{e.image_ids[0] for e in load(real, split)} for split in ("test", "train")]
    assert (len(images[0]), len(images[0] & images[1]), len(images[0] | images[1])) == (
        203,
        202,
        314,
    )


def test_every_picture_opens(real):
    some = {e.image_ids[0]: e.images[0] for e in load(real, "test")}
    for image in list(some.values())[:20]:
        assert min(load_rgb(image).size) > 50


def test_a_missing_picture_names_file_and_row(real, tmp_path):
    rows = json.loads((real / JSON_NAME).read_text())[:2]
    (tmp_path / JSON_NAME).write_text(json.dumps(rows))
    (tmp_path / IMAGE_FOLDER).mkdir()
    shutil.copy(real / IMAGE_FOLDER / rows[0]["image_name"], tmp_path / IMAGE_FOLDER)
    with pytest.raises(UserError, match=rf"row 1: image {rows[1]['image_name']} is not in"):
        load(tmp_path, "all")


def test_a_row_without_a_question_is_named(real, tmp_path):
    row = json.loads((real / JSON_NAME).read_text())[0]
    (tmp_path / JSON_NAME).write_text(json.dumps([{**row, "question": ""}]))
    with pytest.raises(UserError, match="row 0 has no question"):
        load(tmp_path, "all")


def test_a_file_without_rows_is_named(tmp_path):
    (tmp_path / JSON_NAME).write_text('{"rows": 1}')
    with pytest.raises(UserError, match=f"{JSON_NAME} is no list of rows"):
        load(tmp_path, "all")


@pytest.fixture
def hub_copy(tmp_path):
    datasets = pytest.importorskip("datasets")
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 77).save(buffer, "PNG")
    picture = {"bytes": buffer.getvalue(), "path": None}
    for split, answers in (("train", ["yes", "axial"]), ("test", ["No", "3"])):
        rows = {
            "image": [picture] * 2,
            "question": [f"{split} question {i}?" for i in range(2)],
            "answer": answers,
        }
        features = datasets.Features(
            image=datasets.Image(),
            question=datasets.Value("string"),
            answer=datasets.Value("string"),
        )
        (tmp_path / "data").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(
            tmp_path / "data" / f"{split}-00000-of-00001.parquet"
        )
    return tmp_path


def test_the_hub_layout_is_read_with_types_by_rule(hub_copy):
    everything = load(hub_copy, "all")
    assert [e.id for e in everything] == ["train-0", "train-1", "test-0", "test-1"]
    assert [e.answer_type for e in everything] == ["closed", "open", "closed", "open"]
    assert {e.type_origin for e in everything} == {"rule"}
    assert load_rgb(everything[0].images[0]).getpixel((0, 0)) == (77, 77, 77)
    assert len({e.image_ids for e in everything}) == 1  # the same picture, found by its bytes


def test_other_columns_are_named(hub_copy):
    import datasets

    for path in hub_copy.rglob("test-*.parquet"):
        datasets.Dataset.from_dict({"picture": [1], "question": ["q"]}).to_parquet(path)
    with pytest.raises(UserError, match=r"no column for image, answer; it has picture, question"):
        load(hub_copy, "test")


@pytest.mark.parametrize(
    ("column", "message"),
    [("answer", r"test\[1\] has no answer"), ("image", r"test\[1\] has no image bytes")],
)
def test_an_empty_cell_of_the_hub_layout_is_named(hub_copy, column, message):
    import datasets

    (path,) = hub_copy.rglob("test-*.parquet")
    rows = datasets.Dataset.from_parquet(str(path), cache_dir=str(hub_copy / "cache"))
    rows = rows.cast_column("image", datasets.Image(decode=False)).to_dict()
    rows[column][1] = None
    features = datasets.Features(
        image=datasets.Image(), question=datasets.Value("string"), answer=datasets.Value("string")
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    with pytest.raises(UserError, match=message):
        load(hub_copy, "test")


def test_an_unreachable_hub_tells_to_give_a_path(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to host\nand much more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"\(no route to host\); .* give data.path=") as caught:
        load_examples(SourceConfig(name="vqa_rad", split="test"), seed=0)
    assert "\n" not in str(caught.value)


def test_an_empty_folder_and_an_unknown_split_say_what_is_wanted(tmp_path):
    with pytest.raises(UserError, match="holds no table of split test"):
        load(tmp_path, "test")
    with pytest.raises(UserError, match="no split 'tset'; it has train, test, all"):
        load(tmp_path, "tset")
    with pytest.raises(UserError, match="nowhere is no directory"):
        load(tmp_path / "nowhere", "test")


def test_the_disjoint_split_shares_no_picture_and_no_case(real):
    train, test = load(real, "train_disjoint"), load(real, "test_disjoint")
    assert (len(train), len(test)) == (1795, 453)
    assert Counter(e.answer_type for e in test) == {"closed": 265, "open": 188}
    assert not {e.image_ids for e in train} & {e.image_ids for e in test}
    rows = json.loads((real / JSON_NAME).read_text())
    case_of = {str(row["qid"]): row["image_case_url"] for row in rows}
    assert not {case_of[e.id] for e in train} & {case_of[e.id] for e in test}


def test_pictures_of_one_case_stay_on_one_side():
    images = [f"{n}.jpg" for n in range(40)]
    cases = {image: {f"case {n // 2}"} for n, image in enumerate(images)}
    chosen = disjoint_test_images(images, cases)
    assert len(chosen) == 8
    assert all((f"{n}.jpg" in chosen) == (f"{n + 1}.jpg" in chosen) for n in range(0, 40, 2))


def test_each_question_is_tested_in_one_fold_on_a_picture_that_its_training_lacks(real):
    tested = []
    for fold in FOLDS:
        training, test = load(real, f"train_{fold}"), load(real, f"test_{fold}")
        tested += [example.id for example in test]
        assert len(training) + len(test) == 2248
        assert 440 <= len(test) <= 460
        assert not {e.image_ids for e in training} & {e.image_ids for e in test}
    assert len(tested) == len(set(tested)) == 2248
