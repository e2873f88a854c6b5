"""SLAKE: the real rows with pictures drawn in their place, and a small copy in each layout."""

import io
import json
import zipfile
from collections import Counter

import pytest
from PIL import Image

from medvqa.config.data import SourceConfig
from medvqa.config.errors import UserError
from medvqa.data.image import load_rgb
from medvqa.data.pool import load_examples, load_pool


def config(path, split, **settings):
    return SourceConfig(name="slake", path=path and str(path), split=split, **settings)


def load(path, split="test"):
    return load_examples(config(path, split), seed=0)


def png(gray=40):
    buffer = io.BytesIO()
    Image.new("L", (8, 8), gray).save(buffer, "PNG")
    return buffer.getvalue()


def row(qid, **changed):
    return {
        "img_id": qid % 2,
        "img_name": f"xmlab{qid % 2}/source.jpg",
        "question": "Is this a CT?",
        "answer": "Yes",
        "q_lang": "en",
        "location": "Lung",
        "modality": "CT",
        "answer_type": "CLOSED",
        "base_type": "vqa",
        "content_type": "Modality",
        "triple": ["vhead", "_", "_"],
        "qid": qid,
        **changed,
    }


def zip_images(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("imgs/", b"")
        for name in names:
            archive.writestr(f"imgs/{name}", png(40))


def write(folder, split, *rows):
    (folder / f"{split}.json").write_text(json.dumps(rows), encoding="utf-8")


@pytest.fixture
def copy(tmp_path):
    write(tmp_path, "train", row(0), row(1, question="这是CT吗?", q_lang="zh", answer="是"))
    write(tmp_path, "validation", row(2))
    write(tmp_path, "test", row(3, answer_type="OPEN ", answer="Lung"), row(4))
    zip_images(tmp_path / "imgs.zip", "xmlab0/source.jpg", "xmlab1/source.jpg", "xmlab0/mask.png")
    return tmp_path


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("slake")
    names = set()
    for path in (shared / "data" / "slake_text").glob("*.json"):
        (folder / path.name).symlink_to(path)
        names |= {r["img_name"] for r in json.loads(path.read_text(encoding="utf-8"))}
    zip_images(folder / "imgs.zip", *sorted(names))
    return folder


@pytest.mark.parametrize(
    ("split", "size", "num_images", "types"),
    [
        ("validation_en", 1053, 96, {"OPEN": 631, "CLOSED": 422}),
        ("test_en", 1061, 96, {"OPEN": 645, "CLOSED": 416}),
        ("test_zh", 1033, 96, {"OPEN": 613, "CLOSED": 420}),
        ("test", 2094, 180, {"OPEN": 1258, "CLOSED": 836}),
    ],
)
def test_the_counts_are_the_published_ones(real, split, size, num_images, types):
    examples = load(real, split)
    assert (len(examples), len({e.image_ids for e in examples})) == (size, num_images)
    assert Counter(e.answer_type.upper() for e in examples) == types
    assert {e.type_origin for e in examples} == {"official"}
    assert {e.split for e in examples} == {split.partition("_")[0]}


def test_one_of_the_4919_training_rows_has_no_answer_and_must_be_allowed_for(real):
    with pytest.raises(UserError, match=r"train\.json, row \d+ has no answer"):
        load(real, "train_en")
    pool = load_pool(config(real, "train_en", max_bad_rows=1), seed=0)
    assert (len(pool.examples), len(pool.skipped)) == (4918, 1)
    assert "1622" not in {e.id for e in pool.examples}
    assert len({e.image_ids for e in pool.examples}) == 450


def test_all_splits_and_languages_are_14028_rows_with_ids_of_their_own(real):
    pool = load_pool(config(real, "all", max_bad_rows=1), seed=0)
    assert len(pool.examples) + len(pool.skipped) == 14028


def test_only_the_splits_of_one_language_are_image_disjoint(real):
    def images(split):
        pool = load_pool(config(real, split, max_bad_rows=1), seed=0)
        return {e.image_ids for e in pool.examples}

    assert images("train_en") & images("test_en") == set()
    assert len(images("train") & images("test")) == 142


def test_official_types_and_ids_are_kept(copy):
    opened, closed = load(copy)
    assert (opened.id, opened.answer_type, opened.answers) == ("3", "open", ("Lung",))
    assert (closed.id, closed.answer_type, closed.type_origin) == ("4", "closed", "official")
    assert closed.image_ids == ("slake/xmlab0/source.jpg",)
    assert load_rgb(closed.images[0]).getpixel((0, 0)) == (40, 40, 40)


def test_a_language_is_chosen_by_the_split(copy):
    assert [e.id for e in load(copy, "train")] == ["0", "1"]
    assert [e.id for e in load(copy, "train_en")] == ["0"]
    assert [e.question for e in load(copy, "train_zh")] == ["这是CT吗?"]
    assert [e.split for e in load(copy, "all_en")] == ["train", "validation", "test", "test"]


def test_the_authors_file_name_and_unpacked_images_are_read_too(copy):
    (copy / "validation.json").rename(copy / "validate.json")
    with zipfile.ZipFile(copy / "imgs.zip") as archive:
        archive.extractall(copy)
    (copy / "imgs.zip").unlink()
    (example,) = load(copy, "validation")
    assert load_rgb(example.images[0]).size == (8, 8)


def test_files_come_from_the_hub_where_no_path_is_given(copy, monkeypatch):
    import huggingface_hub

    def download(name, file, **settings):
        assert (name, settings) == ("BoKelvin/SLAKE", {"repo_type": "dataset", "revision": None})
        return str(copy / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert [e.id for e in load(None)] == ["3", "4"]


def test_an_integer_answer_becomes_a_text(copy):
    write(copy, "test", row(3, answer=2))
    assert load(copy)[0].answers == ("2",)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"question": ""}, "row 1 has no question"),
        ({"answer": " "}, "row 1 has no answer"),
        ({"answer": ["a", "b"]}, r"row 1: answer is list, not a text: \['a', 'b'\]"),
        ({"answer_type": "both"}, "row 1: answer_type is 'both', not OPEN or CLOSED"),
        ({"img_name": "xmlab9/source.jpg"}, "row 1: image xmlab9/source.jpg is not in imgs"),
        ({"img_name": "../../secret.jpg"}, "row 1: image name '../../secret.jpg' leads out"),
    ],
)
def test_a_bad_row_is_named_or_skipped(copy, changed, message):
    write(copy, "test", row(3), row(4, **changed))
    with pytest.raises(UserError, match=rf"test\.json, {message}"):
        load(copy)
    pool = load_pool(config(copy, "test", max_bad_rows=1), seed=0)
    assert ([e.id for e in pool.examples], len(pool.skipped)) == (["3"], 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'[{"qid": 1, "text": "a"}]', "row 0: no column img_name, .* found qid, text"),
        (b"[1]", "row 0 is no row but int"),
        (b'{"qid": 1}', "is no list of rows but dict"),
        (b'[{"qid": 1', "is no JSON: "),
        ('[{"question": "où?"}]'.encode("latin-1"), r"is not UTF-8 text \(byte 16\)"),
        (b"[]", "slake: split 'test' has no rows"),
    ],
)
def test_a_file_of_another_kind_is_named(copy, text, message):
    (copy / "test.json").write_bytes(text)
    with pytest.raises(UserError, match=message):
        load(copy)


def test_an_id_that_occurs_twice_is_an_error(copy):
    write(copy, "test", row(3), row(3))
    with pytest.raises(UserError, match="slake: 1 ids occur twice, first '3'"):
        load(copy)


def test_a_zip_file_that_was_cut_off_is_named(copy):
    path = copy / "imgs.zip"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"imgs\.zip is no complete ZIP file .*fetch it again"):
        load(copy)


def test_a_zip_file_that_leads_out_of_its_folder_is_refused(copy):
    zip_images(copy / "imgs.zip", "../../outside.jpg")
    with pytest.raises(UserError, match=r"imgs\.zip: .*outside.jpg' leads out"):
        load(copy)


def test_what_is_missing_is_named(copy, tmp_path):
    with pytest.raises(UserError, match="no split 'val'; it has train, validation, test, all, tra"):
        load(copy, "val")
    with pytest.raises(UserError, match=r"nowhere has no test\.json"):
        load(tmp_path / "nowhere")
    (copy / "imgs.zip").unlink()
    with pytest.raises(UserError, match=r"neither .*imgs nor imgs\.zip"):
        load(copy)
