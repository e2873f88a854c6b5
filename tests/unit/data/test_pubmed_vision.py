"""PubMedVision: rows are drawn first, then only what they need is opened or fetched."""

import json
import logging
import zipfile

import pytest

from medvqa.config.data import PartConfig, SourceConfig
from medvqa.config.errors import UserError
from medvqa.data.image import ImageFile, load_rgb
from medvqa.data.pool import load_pool, rows_sha256
from medvqa.data.storage import archive_set
from medvqa.data.storage.json_list import JsonList
from medvqa.models.encode import Encoder
from tests import copies

ALIGNMENT = "PubMedVision_Alignment_VQA"
INDEX = "PubMedVision_InstructionTuning_VQA"
CACHE = "huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE"

SAID_OF_ONE_IMAGE = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "a"}]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    place = tmp_path_factory.mktemp("assets")
    monkeypatch.setattr(CACHE, str(place))
    monkeypatch.setattr("medvqa.data.image.SETTLED_S", 0.0)  # the copies are seconds old
    return place


@pytest.fixture
def copy(tmp_path):
    return copies.pubmed_vision(tmp_path)


def load(folder, seed=0, **settings):
    settings = {"split": "instruction_tuning", "limit": 6, **settings}
    return load_pool(SourceConfig(name="pubmed_vision", path=str(folder), **settings), seed=seed)


def edit(folder, number, **changed):
    path = folder / f"{INDEX}.json"
    rows = json.loads(path.read_text())
    rows[number] |= changed
    path.write_text(json.dumps(rows))


def row_of(example):
    return int(example.id.split("-")[1])


def archive_of(example):
    return row_of(example) // 10


def test_modality_and_body_part_are_part_of_the_text_where_asked(copy):
    (example,) = (e for e in load(copy, limit=None, with_modality=True).examples if row_of(e) == 5)
    assert example.question.endswith("?\nModality: Computed Tomography. Body part: Chest.")
    edit(copy, 5, modality=None)
    with pytest.raises(UserError, match="row 5 has no text in modality"):
        load(copy, limit=None, with_modality=True)
    assert load(copy, limit=None).examples


def test_a_row_becomes_one_example_with_all_its_images_in_order(copy):
    (example,) = (e for e in load(copy, limit=None).examples if row_of(e) == 5)
    assert (example.id, example.question) == (
        "instruction_tuning-5-0",
        "What does figure 5 show?",
    )
    assert (example.answers, example.answer_type, example.type_origin) == (
        ("Finding 5 of the lung.",),
        "open",
        "rule",
    )
    assert example.image_ids == tuple(f"pubmed_vision/pmc_5_{k}.jpg" for k in range(3))
    assert [image.read() for image in example.images] == [copies.picture(50 + k) for k in range(3)]


def test_both_configurations_are_read(copy):
    assert {e.split for e in load(copy, split="alignment").examples} == {"alignment"}
    (copy / f"{INDEX}.json").unlink()
    assert len(load(copy, split="alignment").examples) == 6
    with pytest.raises(UserError, match=f"has neither {INDEX}.json nor a folder {INDEX}"):
        load(copy)
    with pytest.raises(UserError, match="no split 'train'; it has alignment, instruction_tuning"):
        load(copy, split="train")


def test_the_prompt_has_one_marker_an_image_and_none_from_the_text(copy, tiny):
    encoder = Encoder(tiny.processor, max_length_tokens=512)
    said = [
        {"from": "human", "value": "<image><image><image>\nWhich?"},
        {"from": "gpt", "value": "A"},
    ]
    edit(copy, 5, conversations=said)
    for example in load(copy, limit=None).examples:
        prompt = encoder.prompt(example.question, num_images=len(example.images))
        assert prompt.count(tiny.processor.image_token) == len(example.images)
        assert "<image>" not in prompt
    sample = encoder.encode(example)
    assert sample.image_grid_thw.shape == (len(example.images), 3)


def test_the_same_seed_draws_the_same_rows_and_another_seed_others(copy):
    first, again, other = (load(copy, seed=seed) for seed in (0, 0, 1))
    assert rows_sha256(first.examples) == rows_sha256(again.examples)
    assert [row_of(e) for e in first.examples] == sorted(row_of(e) for e in first.examples)
    assert {e.id for e in first.examples} != {e.id for e in other.examples}
    assert first.parts["pubmed_vision"].num_available == 40


def test_only_the_archives_that_hold_a_drawn_image_are_opened(copy, monkeypatch, caplog):
    opened = []
    real = zipfile.ZipFile

    def spy(path, *args, **kwargs):
        opened.append(str(path)[-len("images_0.zip") :])
        return real(path, *args, **kwargs)

    monkeypatch.setattr(zipfile, "ZipFile", spy)
    load(copy)
    # Their directories were read once and are remembered: from here on an archive is opened only
    # to read an image from it.
    opened.clear()
    with caplog.at_level(logging.INFO):
        pool = load(copy, limit=2)
    assert opened == []
    needed = {f"images_{archive_of(e)}.zip" for e in pool.examples}
    assert len(needed) < 4
    num_images = sum(len(e.images) for e in pool.examples)
    assert f"{num_images} images in {len(needed)} of 4 archives; nothing is fetched" in caplog.text
    for example in pool.examples:
        for image in example.images:
            load_rgb(image)
    assert set(opened) == needed


def test_an_archive_that_was_replaced_is_looked_through_anew(copy):
    load(copy, limit=None)
    with zipfile.ZipFile(copy / "images_0.zip", "w") as archive:
        archive.writestr("else.jpg", b"")
    with pytest.raises(UserError, match=r"row 0: image pmc_0_0.jpg is in none of 4 archives"):
        load(copy, limit=None)


def test_unpacked_images_are_read_where_the_card_says_to_unpack_them(copy):
    (copy / "images").mkdir()
    for path in copy.glob("images_*.zip"):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if not name.endswith("/"):
                    (copy / "images" / name.rpartition("/")[2]).write_bytes(archive.read(name))
        path.unlink()
    pool = load(copy)
    assert all(isinstance(image, ImageFile) for e in pool.examples for image in e.images)
    (copy / "images" / pool.examples[2].image_ids[0].rpartition("/")[2]).unlink()
    with pytest.raises(UserError, match=rf"row {row_of(pool.examples[2])}: image .* is not in "):
        load(copy)


def test_a_truncated_archive_is_named_with_the_row_that_needs_it(copy):
    elsewhere = next(
        seed
        for seed in range(99)
        if all(archive_of(e) != 2 for e in load(copy, seed=seed, limit=2).examples)
    )
    path = copy / "images_2.zip"
    path.write_bytes(path.read_bytes()[:-400])
    assert len(load(copy, seed=elsewhere, limit=2).examples) == 2
    with pytest.raises(
        UserError, match=r"InstructionTuning_VQA.json, row 2\d: image .*images_2.zip is no complete"
    ):
        load(copy, limit=None)


def test_a_missing_member_names_archives_and_row_or_is_replaced_by_the_next_drawn(copy):
    before = load(copy).examples
    lost = before[3]
    edit(copy, row_of(lost), image=["images/lost.jpg"])
    with pytest.raises(UserError) as caught:
        load(copy)
    assert f"{INDEX}.json, row {row_of(lost)}: image lost.jpg is in none of 4 arch" in str(
        caught.value
    )
    assert "images_0.zip" in str(caught.value)
    pool = load(copy, max_bad_rows=1)
    assert len(pool.examples) == 6
    assert len({e.id for e in pool.examples} & {e.id for e in before}) == 5
    assert pool.parts["pubmed_vision"].num_skipped == 1
    assert "lost.jpg" in pool.skipped[0]


def test_a_damaged_image_is_skipped_and_replaced_only_where_that_is_allowed(copy):
    name = load(copy).examples[0].image_ids[0].rpartition("/")[2]
    (copy / "images").mkdir()
    (copy / "images" / name).write_bytes(copies.picture(1)[:300])
    assert len(load(copy).examples) == 6  # a run refuses it before training: see test_bad_input
    pool = load(copy, max_bad_rows=1)
    assert len(pool.examples) == 6
    assert f"{name} is broken or no image" in pool.skipped[0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image": []}, "image must be one or more file names, got []"),
        ({"image": None}, "has no image; found image, id"),
        ({"image": ["../../etc/x.jpg"]}, "image name '../../etc/x.jpg' leads out"),
        ({"conversations": []}, "question and answer must take turns; it has nobody"),
        (
            {
                "conversations": [
                    {"from": "human", "value": "<image>?"},
                    {"from": "gpt", "value": "A"},
                ]
            },
            "message 0 has 1 <image> markers, but 3 image(s)",
        ),
    ],
)
def test_a_bad_row_is_named(copy, changed, message):
    edit(copy, 5, **changed)
    with pytest.raises(UserError) as caught:
        load(copy, limit=None)
    assert f"{INDEX}.json, row 5" in str(caught.value)
    assert message in str(caught.value)


def test_an_index_in_parquet_gives_the_same_rows(copy):
    datasets = pytest.importorskip("datasets")
    whole = load(copy).examples
    rows = json.loads((copy / f"{INDEX}.json").read_text())
    (copy / INDEX).mkdir()
    datasets.Dataset.from_list(rows).to_parquet(copy / INDEX / "train-00000-of-00001.parquet")
    (copy / f"{INDEX}.json").unlink()
    assert load(copy).examples == whole


def test_as_a_part_of_a_mixture_it_draws_its_quota_from_the_index(copy):
    part = PartConfig(name="pubmed_vision", path=str(copy), split="alignment", quota=5)
    pool = load_pool(SourceConfig(name="mixture", split="train", parts={"p": part}), seed=0)
    assert len(pool.examples) == 5
    assert (pool.parts["p"].num_available, pool.examples[0].id[:12]) == (40, "p/alignment-")


def test_more_than_there_is_says_so(copy):
    with pytest.raises(UserError, match="pubmed_vision: limit=99, but there are only 40 rows"):
        load(copy, limit=99)


def test_a_list_is_read_over_the_borders_of_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("medvqa.data.storage.json_list.CHUNK_BYTES", 7)
    rows = [{"text": "é" * n + '"]},[{' + "肺"} for n in range(9)]
    path = tmp_path / "a.json"
    for indent, mark in ((None, ""), (2, ""), (None, "\ufeff")):
        path.write_text(
            mark + json.dumps(rows, ensure_ascii=False, indent=indent), encoding="utf-8"
        )
        found = JsonList(path)
        assert [found[n] for n in range(len(found))] == rows
    path.write_text(" [ ] ")
    assert len(JsonList(path)) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1}', "a.json is no JSON list of rows"),
        (b'[{"a": 1}, {"a"', "a.json, row 1 is no JSON: "),
        (b'[{"a": 1},', "a.json ends before its list of rows does"),
        (b'[{"a": 1} {"a": 1}]', "a.json, row 0 is not followed by a comma"),
        ('[{"a": "où"}]'.encode("latin-1"), "a.json is not UTF-8 text"),
        (b"", "a.json ends before its list of rows does"),
    ],
)
def test_a_list_that_is_none_is_named(tmp_path, text, message):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(UserError, match=message):
        JsonList(tmp_path / "a.json")


def test_the_numbers_order_archives(tmp_path):
    for number in (10, 9, 0):
        (tmp_path / f"images_{number}.zip").touch()
    found = archive_set.local_archives(tmp_path, "images_*.zip")
    names = [archive.label.rpartition("/")[2] for archive in found]
    assert names == ["images_0.zip", "images_9.zip", "images_10.zip"]
