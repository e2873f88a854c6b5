"""PathVQA: a small copy in the hub's layout."""

import io
import tracemalloc

import pytest
from PIL import Image

from medvqa.config.data import SourceConfig
from medvqa.config.errors import UserError
from medvqa.data.image import load_rgb
from medvqa.data.pool import load_examples, load_pool

datasets = pytest.importorskip("datasets")
TEXT = datasets.Value("string")


def load(path, split="test", **settings):
    return load_examples(
        SourceConfig(name="path_vqa", path=str(path), split=split, **settings), seed=0
    )


def picture(gray):
    buffer = io.BytesIO()
    Image.new("L", (8, 8), gray).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write(folder, split, columns, **features):
    features = {"image": datasets.Image(), "question": TEXT, "answer": TEXT, **features}
    features = datasets.Features({name: features[name] for name in columns})
    (folder / "data").mkdir(exist_ok=True)
    datasets.Dataset.from_dict(columns, features=features).to_parquet(
        folder / "data" / f"{split}-00000-of-00001-0123456789abcdef.parquet",
        batch_size=100,
    )
    return folder


def rows(**changed):
    columns = {
        "image": [picture(10), picture(20), picture(10)],
        "question": ["is it a nucleus?", "where is it?", "how many?"],
        "answer": ["Yes", "in the liver", "no."],
    }
    return {**columns, **changed}


@pytest.fixture
def copy(tmp_path):
    for split in ("train", "validation", "test"):
        write(tmp_path, split, rows())
    return tmp_path


def test_rows_have_ids_types_by_rule_and_pictures(copy):
    first, second, third = load(copy)
    assert (first.id, first.question, first.answers) == ("test-0", "is it a nucleus?", ("Yes",))
    assert [e.answer_type for e in (first, second, third)] == ["closed", "open", "closed"]
    assert {e.type_origin for e in (first, second, third)} == {"rule"}
    assert first.image_ids == third.image_ids != second.image_ids
    assert load_rgb(second.images[0]).getpixel((0, 0)) == (20, 20, 20)


def test_all_joins_the_three_splits(copy):
    everything = load(copy, "all")
    assert [e.split for e in everything] == ["train"] * 3 + ["validation"] * 3 + ["test"] * 3
    assert len({e.id for e in everything}) == 9


def test_no_picture_stays_in_memory(tmp_path):
    size = 200_000
    columns = rows(image=[{"bytes": bytes([n]) * size, "path": None} for n in range(30)])
    columns |= {name: [f"{name} {n}" for n in range(30)] for name in ("question", "answer")}
    write(tmp_path, "test", columns)
    load(tmp_path)  # the libraries' own memory is taken before the measurement
    tracemalloc.start()
    examples = load(tmp_path)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len({e.image_ids for e in examples}) == 30
    assert held < 3 * size
    assert peak < 10 * size


def test_a_number_as_answer_becomes_a_text(tmp_path):
    write(tmp_path, "test", rows(answer=[3, 4, 5]), answer=datasets.Value("int64"))
    assert [e.answers for e in load(tmp_path)] == [("3",), ("4",), ("5",)]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"question": ["a", " ", "c"]}, r"test\[1\] has no question"),
        ({"answer": ["a", "b", None]}, r"test\[2\] has no answer"),
        ({"image": [picture(1), None, picture(2)]}, r"test\[1\] has no image bytes"),
    ],
)
def test_an_empty_cell_is_named_or_skipped(tmp_path, changed, message):
    write(tmp_path, "test", rows(**changed))
    with pytest.raises(UserError, match=message):
        load(tmp_path)
    source = SourceConfig(name="path_vqa", path=str(tmp_path), split="test", max_bad_rows=1)
    pool = load_pool(source, seed=0)
    assert (len(pool.examples), len(pool.skipped)) == (2, 1)


def test_a_list_as_answer_holds_several_right_answers(tmp_path):
    write(tmp_path, "test", rows(answer=[["a", "b"]] * 3), answer=datasets.List(TEXT))
    assert load(tmp_path)[0].answers == ("a", "b")


def test_other_columns_are_named(tmp_path):
    write(tmp_path, "test", {"image": [picture(1)], "caption": ["a"]}, caption=TEXT)
    with pytest.raises(UserError, match=r"no column for question, answer; it has image, caption"):
        load(tmp_path)


def test_an_empty_split_is_an_error(tmp_path):
    write(tmp_path, "test", rows(image=[], question=[], answer=[]))
    with pytest.raises(UserError, match=r'cannot load .*"test" corresponds to no data'):
        load(tmp_path)


def test_a_file_that_was_cut_off_is_named(copy):
    (path,) = copy.rglob("test-*.parquet")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=f"cannot load {copy}"):
        load(copy)


def test_an_unknown_split_and_a_missing_file_say_what_is_there(copy, tmp_path):
    with pytest.raises(UserError, match="no split 'val'; it has train, validation, test, all"):
        load(copy, "val")
    with pytest.raises(UserError, match="nowhere is not there"):
        load(tmp_path / "nowhere")
