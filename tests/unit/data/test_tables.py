"""The sets of tables.yaml, each from a small copy in its true layout."""

import io
import json
import tracemalloc
import zipfile

import pytest
from PIL import Image

from medvqa.config.data import SourceConfig
from medvqa.config.errors import UserError
from medvqa.data.image import load_rgb
from medvqa.data.pool import load_examples, load_pool
from medvqa.data.tables import tables

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


# --- Sets of other layouts, small copies as their authors lay them out ---------------------------


def entry(name, path, split, **settings):
    return load_pool(SourceConfig(name=name, path=str(path), split=split, **settings), seed=0)


def to_parquet(path, columns, **features):
    path.parent.mkdir(parents=True, exist_ok=True)
    features = {name: features.get(name, TEXT) for name in columns}
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(path)


def test_kvasir_vqa_x1_keeps_complexity_and_knows_pictures_by_name(tmp_path):
    columns = {
        "image": [picture(1), picture(1), picture(2)],
        "img_id": ["cl8k", "cl8k", "cl9x"],
        "complexity": [1, 3, 2],
        "question": ["Is there a polyp?", "What and where?", "How many?"],
        "answer": ["yes", "a polyp, upper left", "two"],
        "original": ["[]"] * 3,
        "question_class": [["polyp"]] * 3,
    }
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    features = {"complexity": datasets.Value("int64"), "question_class": datasets.List(TEXT)}
    to_parquet(path, columns, image=datasets.Image(), **features)
    examples = entry("kvasir_vqa_x1", tmp_path, "train").examples
    assert [e.difficulty for e in examples] == [1.0, 3.0, 2.0]
    assert [e.image_ids for e in examples] == [("cl8k",), ("cl8k",), ("cl9x",)]
    # The authors' script leaves the pictures in a folder, beside rows without them.
    del columns["image"]
    to_parquet(tmp_path / "x1" / "train.parquet", columns, **features)
    (tmp_path / "x1" / "images").mkdir()
    for name in ("cl8k", "cl9x"):
        (tmp_path / "x1" / "images" / f"{name}.jpg").write_bytes(picture(3)["bytes"])
    beside = {"columns": {"image": "{img_id}.jpg"}, "image_root": str(tmp_path / "x1" / "images")}
    again = entry("kvasir_vqa_x1", tmp_path / "x1", "train", **beside).examples
    assert [e.question for e in again] == [e.question for e in examples]


@pytest.mark.parametrize("unpacked", [False, True])
def test_pmc_vqa_finds_its_figures_in_archives_or_beside_them(tmp_path, unpacked):
    header = "Figure_path,Question,Answer,Choice A,Choice B,Choice C,Choice D,Answer_label"
    line = "PMC1_F1.jpg,What uptake?,Focal, A:Diffuse, B:Focal, C:None, D:Cannot tell,B"
    (tmp_path / "train.csv").write_text(f"{header}\n{line}\n")
    header = "index,Figure_path,Caption,Question,Choice A,Choice B,Choice C,Choice D,Answer,split"
    line = "0,PMC2_F1_2.jpg,x,Which plane?,A: axial,B: coronal,C: sagittal,D: oblique,C,train"
    (tmp_path / "train_2.csv").write_text(f"{header}\n{line}\n")
    if unpacked:
        (tmp_path / "images").mkdir()
        for name in ("PMC1_F1.jpg", "PMC2_F1_2.jpg"):
            (tmp_path / "images" / name).write_bytes(picture(4)["bytes"])
    else:
        for archive, name in (("images", "PMC1_F1.jpg"), ("images_2", "PMC2_F1_2.jpg")):
            with zipfile.ZipFile(tmp_path / f"{archive}.zip", "w") as file:
                file.writestr(f"figures/{name}", picture(4)["bytes"])
    (one,) = entry("pmc_vqa", tmp_path, "train").examples
    (two,) = entry("pmc_vqa", tmp_path, "train_2").examples
    assert (one.options, one.answers) == (("Diffuse", "Focal", "None", "Cannot tell"), ("Focal",))
    assert (two.answers, two.answer_type) == (("sagittal",), "closed")
    assert one.images[0].read() == two.images[0].read() == picture(4)["bytes"]


def test_omnimedvqa_joins_its_files_and_takes_rows_of_two_options(tmp_path):
    folder = tmp_path / "QA_information" / "Open-access"
    folder.mkdir(parents=True)
    (tmp_path / "Images" / "ACRIMA").mkdir(parents=True)
    (tmp_path / "Images" / "ACRIMA" / "a.png").write_bytes(picture(5)["bytes"])
    row = {
        **{"dataset": "ACRIMA", "question_id": "ACRIMA_0000", "question_type": "Modality"},
        **{"question": "What is it?", "gt_answer": "Fundus photography"},
        **{"image_path": "Images/ACRIMA/a.png", "option_A": "X-ray", "modality_type": "Fundus"},
        **{"option_B": "Fundus photography", "option_C": "CT", "option_D": "MR"},
    }
    short = {**row, "question_id": "Chest_1", "gt_answer": "No, It's normal.", "option_A": "Yes"}
    short = {**short, "option_B": "No, It's normal."}
    del short["option_C"], short["option_D"]
    (folder / "ACRIMA.json").write_text(json.dumps([row]))
    (folder / "Chest.json").write_text(json.dumps([short]))
    first, second = entry("omnimedvqa", tmp_path, "test").examples
    assert (first.id, first.answers[0], len(first.options)) == (
        *("ACRIMA_0000", "Fundus photography", 4),
    )
    assert second.options == ("Yes", "No, It's normal.")


def test_medxpertqa_has_several_pictures_and_its_question_ends_before_the_options(tmp_path):
    row = {
        **{"id": "MM-1", "question": "What is it?\nAnswer Choices: (A) a (B) b", "label": "B"},
        **{"options": {"A": "a", "B": "b"}, "images": ["MM-1-a.jpeg", "MM-1-b.jpeg"]},
    }
    (tmp_path / "MM").mkdir()
    (tmp_path / "MM" / "test.jsonl").write_text(json.dumps(row))
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        for name in row["images"]:
            file.writestr(f"images/{name}", picture(6)["bytes"])
    (example,) = entry("medxpertqa_mm", tmp_path, "test").examples
    assert (example.question, example.options, example.answers) == (
        *("What is it?", ("a", "b"), ("b",)),
    )
    assert len(example.images) == 2


def test_mmmu_joins_its_subjects_and_keeps_open_questions(tmp_path):
    names = [f"image_{n}" for n in range(1, 8)]
    for number, subject in enumerate(tables()["mmmu_med"].subsets):
        columns = {
            "id": [f"validation_{subject}_{n}" for n in (1, 2)],
            "question": ["What does <image 1> show?", "Compare <image 1> and <image 2>."],
            "options": ["['one', '<image 2>']", "[]"],
            "answer": ["A", "equal"],
            "topic_difficulty": ["Easy", "Hard"],
            **{name: [None, None] for name in names},
            "image_1": [picture(number), picture(number)],
            "image_2": [None, picture(9)],
        }
        features = dict.fromkeys(names, datasets.Image())
        to_parquet(tmp_path / subject / "validation-00000-of-00001.parquet", columns, **features)
    examples = entry("mmmu_med", tmp_path, "validation").examples
    assert len(examples) == 10
    choice, free = examples[:2]
    assert (choice.answers, choice.options, choice.difficulty) == (
        *(("one",), ("one", "<image 2>"), 1.0),
    )
    assert choice.question == "What does [image 1] show?"
    assert (free.options, free.answer_type, len(free.images)) == ((), "open", 2)


def test_halt_medvqa_counts_rows_whose_pictures_are_elsewhere(tmp_path, shared):
    row = {
        **{"question": "What is shown?", "answer": "I do not know", "answer_id": "B"},
        **{"option": {"A": "Liver", "B": "I do not know"}, "img": "synpic21028.jpg"},
    }
    for name in ("fake_qa_shuffle", "pmc_vqa_nota1K", "swap_img_shuffle"):
        rows = {"0": row, "1": {**row, "img": "test_0530.jpg"}}
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    pictures = str(shared / "data" / "vqa_rad" / "VQA_RAD Image Folder")
    pool = entry("halt_medvqa", tmp_path, "all", image_root=pictures, max_bad_rows=3)
    assert [e.split for e in pool.examples] == ["fake", "nota", "swap"]
    assert [e.answers for e in pool.examples] == [("I do not know",)] * 3
    assert len(pool.skipped) == 3
    assert "test_0530.jpg" in pool.skipped[0]


def test_rocov2_asks_one_open_question_about_each_picture(tmp_path):
    columns = {
        "image": [picture(7)],
        "image_id": ["ROCOv2_2023_test_000001"],
        "caption": ["Chest radiograph."],
        "cui": [["C1"]],
    }
    path = tmp_path / "data" / "test-00000-of-00001.parquet"
    to_parquet(path, columns, image=datasets.Image(), cui=datasets.List(TEXT))
    (example,) = entry("rocov2", tmp_path, "test").examples
    assert (example.id, example.answers) == ("ROCOv2_2023_test_000001", ("Chest radiograph.",))
    assert (example.question, example.answer_type) == ("Describe this medical image.", "open")


@pytest.mark.parametrize("name", ["omnimedvqa", "halt_medvqa"])
def test_a_set_without_a_hub_says_that_it_needs_a_path(name):
    with pytest.raises(UserError, match=rf"data={name} needs data\.path="):
        load_pool(SourceConfig(name=name, split="all"), seed=0)
