"""Bad input, a line a case: one clear message with file and row before a model is loaded.

Row by row mistakes are also counted and listed where the user allows it, up to that bound.
"""

import json
import zipfile
from dataclasses import replace
from functools import cache

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from medvqa.cli import register
from medvqa.config.contamination import Contamination
from medvqa.config.data import DataConfig, SourceConfig
from medvqa.config.errors import UserError
from medvqa.inputs import Inputs
from tests import copies
from tests.conftest import ROOT

datasets = pytest.importorskip("datasets")
BAD_LINE = 5  # of twelve


@cache
def smoke():
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        return OmegaConf.to_object(compose("config", ["experiment=smoke"]))


def prepared(
    name, path, *, split="train", tested=None, training=None, contamination=None, **settings
):
    """Do all that a run does before it loads a model."""
    tested = tested or SourceConfig(name="phantom", split="test", limit=9)
    data = DataConfig(
        name=name, path=str(path), split=split, evaluation={"test": tested}, **settings
    )
    config = replace(
        smoke(),
        data=data,
        training=training or smoke().training,
        contamination=contamination or smoke().contamination,
    )
    inputs = Inputs(config)
    inputs.check()
    assert inputs.plan
    return inputs


# --- A user's own JSONL file with one bad row in the middle -------------------------------------


def lines(folder):
    """Write twelve pictures; return as many good rows about them, open and closed in turn."""
    rows = []
    for n in range(1, 13):
        (folder / f"{n}.jpg").write_bytes(copies.picture(n))
        rows.append({"question": f"q{n}?", "answer": "yes" if n % 2 else "a", "image": f"{n}.jpg"})
    return rows


def write_lines(folder, rows, *, splits=("train", "test")):
    for split in splits:
        text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def damaged_jpeg(folder):
    (folder / "bad.jpg").write_bytes(copies.picture(99, size=64)[:900])
    return {"image": "bad.jpg"}


def animated_gif(folder):
    frames = [Image.new("L", (8, 8), gray) for gray in (0, 90, 200)]
    frames[0].save(folder / "bad.gif", save_all=True, append_images=frames[1:])
    return {"image": "bad.gif"}


def huge_image(folder):
    Image.new("1", (10_000, 10_000)).save(folder / "bad.png")  # 100 megapixels in 15 kB
    return {"image": "bad.png"}


def text_as_image(folder):
    (folder / "bad.jpg").write_text("404: not found")
    return {"image": "bad.jpg"}


ROW_CASES = {
    "no question": (lambda _: {"question": ""}, "train.jsonl, line 5: no question"),
    "no answer": (lambda _: {"answer": ""}, "train.jsonl, line 5: 'answer' is empty"),
    "null answer": (lambda _: {"answer": None}, "train.jsonl, line 5: 'answer' is empty"),
    "answer list": (lambda _: {"answer": ["a", "b"]}, "line 5: 'answer' is empty or not a text"),
    "duplicate ids": (lambda _: {"id": "train-3"}, "line 5: id 'train-3' stands in line 3 too"),
    "image count": (
        lambda _: {"question": "<image><image> which?"},
        "train.jsonl, line 5: question has 2 <image> markers, but 1 image(s)",
    ),
    "image missing": (lambda _: {"image": "no.jpg"}, "line 5: cannot read image "),
    "chat token": (
        lambda _: {"question": "<|image_pad|> which?"},
        "jsonl/train-5: the text holds <|image_pad|>, a token of the chat format",
    ),
    "corrupted jpeg": (damaged_jpeg, "jsonl/train-5: image {folder}/bad.jpg is broken or no image"),
    "text as image": (text_as_image, "jsonl/train-5: image {folder}/bad.jpg is broken or no image"),
    "animated gif": (animated_gif, "jsonl/train-5: image {folder}/bad.gif has 3 frames; save the"),
    "100 megapixels": (huge_image, "jsonl/train-5: image {folder}/bad.png has 100,000,000 pixels"),
}


@pytest.mark.parametrize(("make", "message"), ROW_CASES.values(), ids=ROW_CASES)
def test_a_bad_row_in_the_middle_is_an_error_or_listed_up_to_the_bound(tmp_path, make, message):
    rows = lines(tmp_path)
    write_lines(tmp_path, rows)
    message = message.format(folder=tmp_path)
    assert len(prepared("jsonl", tmp_path).training.examples) == 12
    rows[BAD_LINE - 1] |= make(tmp_path)
    write_lines(tmp_path, rows)
    with pytest.raises(UserError) as caught:
        prepared("jsonl", tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)

    skipping = prepared("jsonl", tmp_path, max_bad_rows=1)
    assert f"train-{BAD_LINE}" not in {example.id for example in skipping.training.examples}
    described = skipping.training.describe()
    assert (len(skipping.training.examples), described["num_skipped"]) == (11, 1)
    assert message in described["skipped"][0]

    rows[BAD_LINE] |= {"question": ""}
    write_lines(tmp_path, rows)
    with pytest.raises(UserError, match=r"more than data.max_bad_rows=1 rows cannot be used"):
        prepared("jsonl", tmp_path, max_bad_rows=1)


def test_an_integer_answer_becomes_a_text(tmp_path):
    rows = lines(tmp_path)
    rows[BAD_LINE - 1]["answer"] = 3
    write_lines(tmp_path, rows)
    pool = prepared("jsonl", tmp_path).training.examples
    assert pool[BAD_LINE - 1].answers == ("3",)


def test_a_damaged_evaluation_picture_is_found_before_training_too(tmp_path):
    rows = lines(tmp_path)
    write_lines(tmp_path, rows)
    rows[BAD_LINE - 1] |= damaged_jpeg(tmp_path)
    write_lines(tmp_path, rows, splits=("test",))
    tested = SourceConfig(name="jsonl", path=str(tmp_path), split="test")
    with pytest.raises(UserError, match=r"jsonl/test-5: image .*bad\.jpg is broken"):
        prepared("jsonl", tmp_path, tested=tested)


def test_a_damaged_picture_outside_the_plan_ends_the_run_unless_the_gate_only_reports(tmp_path):
    rows = [{**row, "id": f"r{n}"} for n, row in enumerate(lines(tmp_path))]
    write_lines(tmp_path, rows)
    short = replace(
        smoke().training, max_steps=2, warmup_steps=0, micro_batch_size=2, accumulation_steps=1
    )
    seen = set(prepared("jsonl", tmp_path, training=short).plan.order)
    unseen = next(n for n, row in enumerate(rows) if row["id"] not in seen)
    rows[unseen] |= damaged_jpeg(tmp_path)
    write_lines(tmp_path, rows)
    with pytest.raises(UserError, match=rf"jsonl/r{unseen}: image .*contamination=report"):
        prepared("jsonl", tmp_path, training=short)
    reporting = replace(smoke().contamination, action=Contamination.report)
    inputs = prepared("jsonl", tmp_path, training=short, contamination=reporting)
    assert len(inputs.training.examples) == 12
    assert len(inputs.overlap.unreadable) == 1


# --- Files and folders, each by the loader that it concerns ---------------------------------------


def no_file(folder):
    return "jsonl", {"path": folder / "none.jsonl"}


def no_split_file(folder):
    write_lines(folder, lines(folder))
    return "jsonl", {"path": folder, "split": "validation"}


def no_folder(folder):
    return "vqa_rad", {"path": folder / "nowhere"}


def no_image_folder(folder):
    (folder / "VQA_RAD Dataset Public.json").write_text(
        json.dumps(
            [
                {
                    **{"qid": 1, "image_name": "a.jpg", "question": "q", "answer": "yes"},
                    **{"answer_type": "CLOSED", "phrase_type": "freeform"},
                }
            ]
        )
    )
    return "vqa_rad", {"path": folder}


def slake(folder, *rows, members=("imgs/x/source.jpg",), encoding="utf-8"):
    good = {"qid": 0, "img_name": "x/source.jpg", "question": "q", "answer": "yes"}
    good |= {"answer_type": "CLOSED", "q_lang": "en"}
    text = json.dumps([{**good, "qid": n, **row} for n, row in enumerate([{}, *rows])])
    (folder / "train.json").write_text(text, encoding=encoding)
    with zipfile.ZipFile(folder / "imgs.zip", "w") as archive:
        for member in members:
            archive.writestr(member, copies.picture(1))
    return "slake", {"path": folder}


def cut_archive(folder):
    case = slake(folder)
    path = folder / "imgs.zip"
    path.write_bytes(path.read_bytes()[:-30])
    return case


def cut_archive_of_many(folder):
    copies.pubmed_vision(folder)
    path = folder / "images_1.zip"
    path.write_bytes(path.read_bytes()[:-30])
    return "pubmed_vision", {"path": folder, "limit": 40}


def damaged_member(folder):
    case = slake(folder, {"answer": "a", "answer_type": "OPEN"})
    path = folder / "imgs.zip"
    data = bytearray(path.read_bytes())
    data[60:90] = bytes(30)  # inside the picture; the directory is whole
    path.write_bytes(data)
    return case


def zip_slip(folder):
    return slake(folder, members=("imgs/x/source.jpg", "../../evil.jpg"))


def zip_slip_of_many(folder):
    copies.pubmed_vision(folder)
    with zipfile.ZipFile(folder / "images_1.zip", "a") as archive:
        archive.writestr("/etc/evil.jpg", b"")
    return "pubmed_vision", {"path": folder, "limit": 40}


def slip_in_a_row(folder):
    return slake(folder, {"img_name": "../../x.jpg"})


def parquet(folder, columns, name="imaging_combined"):
    folder.mkdir(exist_ok=True)
    features = {key: datasets.Value("string") for key in columns}
    features |= {"image": datasets.Image()} if "image" in columns else {}
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(
        folder / "train-00000-of-00001.parquet"
    )
    return name, {"path": folder}


def wrong_columns(folder):
    return parquet(folder, {"scan": ["a"], "text": ["b"]}, "path_vqa")


def unknown_shape(folder):
    image = {"bytes": copies.picture(1), "path": None}
    return parquet(folder, {"image": [image], "caption": ["b"]})


def damaged_in_parquet(folder):
    images = [copies.picture(n, size=64) for n in range(12)]
    images[4] = images[4][:900]
    columns = {
        "image": [{"bytes": data, "path": None} for data in images],
        "question": [f"q{n}" for n in range(12)],
        "answer": ["yes", "a"] * 6,
    }
    return parquet(folder, columns, "path_vqa")


def cut_parquet(folder):
    case = unknown_shape(folder)
    path = folder / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:200])
    return case


def no_rows(folder):
    write_lines(folder, [""])
    return "jsonl", {"path": folder}


def list_as_answer(folder):
    return slake(folder, {"answer": ["a", "b"]})


def repeated_id(folder):
    return slake(folder, {"qid": 0})


def too_few_images(folder):
    copies.pubmed_vision(folder)
    path = folder / "PubMedVision_InstructionTuning_VQA.json"
    rows = json.loads(path.read_text())
    rows[7]["conversations"][0]["value"] = "<image><image><image> Which?"
    path.write_text(json.dumps(rows))
    return "pubmed_vision", {"path": folder, "limit": 40}


def latin_1(folder):
    (folder / "train.jsonl").write_bytes('{"question": "où?"}'.encode("latin-1"))
    return "jsonl", {"path": folder}


def utf_16(folder):
    (folder / "train.jsonl").write_text('{"question": "a"}', encoding="utf-16")
    return "jsonl", {"path": folder}


def csv(folder):
    (folder / "train.jsonl").write_text("question,answer,image\nWhat?,yes,a.png\n")
    return "jsonl", {"path": folder}


FILE_CASES = {
    no_file: "cannot read {folder}/none.jsonl: No such file",
    no_split_file: "{folder} has no validation.jsonl; splits found: test, train",
    no_folder: "data.path={folder}/nowhere is no directory",
    no_image_folder: "Public.json, row 0: image a.jpg is not in VQA_RAD Image Folder",
    cut_archive: "{folder}/imgs.zip is no complete ZIP file",
    cut_archive_of_many: "row 16: image pmc_16_0.jpg is in none of 4 archives (images_0.zip",
    damaged_member: "slake/0: cannot read image {folder}/imgs.zip:imgs/x/source.jpg: Bad CRC-32",
    zip_slip: "{folder}/imgs.zip: image name '../../evil.jpg' leads out of the data set's folder",
    zip_slip_of_many: "images_1.zip: image name '/etc/evil.jpg' leads out",
    slip_in_a_row: "train.json, row 1: image name '../../x.jpg' leads out",
    wrong_columns: "{folder} train: no column for image, question, answer; it has scan",
    unknown_shape: "no column for question; it has image, caption",
    damaged_in_parquet: "path_vqa/train-4: image {folder} train[4] is broken or no image",
    cut_parquet: "cannot load {folder} (",
    no_rows: "jsonl: split 'train' has no rows",
    list_as_answer: "train.json, row 1: answer is list, not a text: ['a', 'b']",
    repeated_id: "slake: 1 ids occur twice, first '0'",
    too_few_images: "row 7: conversations: message 0 has 3 <image> markers, but 2 image(s)",
    latin_1: "{folder}/train.jsonl is not UTF-8 text (byte 15); convert it",
    utf_16: "{folder}/train.jsonl is not UTF-8 text (byte 0); convert it",
    csv: "{folder}/train.jsonl, line 1 is no JSON object (Expecting value: line 1 column 1 "
    "(char 0)); is it a CSV?",
}


@pytest.mark.parametrize(
    ("make", "message"), FILE_CASES.items(), ids=[make.__name__ for make in FILE_CASES]
)
def test_a_bad_file_is_one_clear_line(tmp_path, monkeypatch, make, message):
    monkeypatch.setattr(
        "huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets")
    )
    folder = tmp_path / "data"
    folder.mkdir()
    name, settings = make(folder)
    settings = {"split": "instruction_tuning" if name == "pubmed_vision" else "train", **settings}
    with pytest.raises(UserError) as caught:
        prepared(name, **settings)
    assert message.format(folder=folder) in str(caught.value)
    assert "\n" not in str(caught.value)
