"""The gate finds what it claims, on hand-made pictures and on VQA-RAD's real ones."""

import io
import json
import os
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

from medvqa.config.contamination import Contamination, ContaminationConfig
from medvqa.config.data import SourceConfig
from medvqa.config.errors import UserError
from medvqa.contamination.gate import allowed_rows, measure, refusal
from medvqa.contamination.near import MAX_DISTANCE, NearIndex
from medvqa.contamination.overlap import find_overlap
from medvqa.data.example import Example
from medvqa.data.image import ImageBytes, ImageFile
from medvqa.data.pool import load_examples
from medvqa.data.storage.cache import Cache
from tests.conftest import ROOT
from tests.unit.config.test_compose import config_of

CONFIG = ContaminationConfig()


def picture(seed, size=(300, 240)):
    """Smooth random shapes with some texture, unlike those of another seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (9, 9), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def row(name, image, *, question="What is it?", answers=("a",), images=()):
    sources = (ImageBytes(name, image), *images) if isinstance(image, bytes) else (image,)
    return Example(
        id=f"row-{name}",
        images=sources,
        question=question,
        answers=tuple(answers),
        answer_type="open",
        type_origin="rule",
        source="handmade",
        split="train",
        image_ids=tuple(source.name for source in sources),
    )


def overlap(training, evaluation, *, cache, max_distance=CONFIG.max_distance):
    with Cache(cache) as hashes:
        return find_overlap(training, {"test": evaluation}, hashes, max_distance=max_distance)


def vqa_rad(shared, split):
    path = str(shared / "data" / "vqa_rad")
    return load_examples(SourceConfig(name="vqa_rad", path=path, split=split), seed=0)


def cropped(image, share):
    x, y = image.width * share, image.height * share
    return image.crop((round(x), round(y), round(image.width - x), round(image.height - y)))


def test_vqa_rads_own_split_shares_202_of_203_pictures_and_one_question(shared):
    found = measure(CONFIG, vqa_rad(shared, "train"), {"test": vqa_rad(shared, "test")})
    (test,) = found.sets
    assert (test.num_shared, test.num_same_file, test.num_pictures) == (202, 202, 203)
    assert (test.num_items, test.num_questions_on_shared, test.num_questions) == (1, 446, 451)
    assert len(found.training_rows) == 1063
    assert "202 of 203 pictures of data.evaluation.test occur" in (refusal(CONFIG, found) or "")
    assert refusal(config_of("data=vqa_rad").contamination, found) is None


def test_the_disjoint_split_shares_nothing(shared):
    pool = vqa_rad(shared, "train_disjoint")
    found = measure(CONFIG, pool, {"test": vqa_rad(shared, "test_disjoint")})
    assert (found.sets[0].num_shared, found.sets[0].num_items) == (0, 0)
    assert refusal(CONFIG, found) is None


def test_edited_copies_of_real_pictures_are_found_and_others_are_not(shared, tmp_path):
    files = sorted((shared / "data" / "vqa_rad").rglob("*.jpg"))[::40]
    edits = {
        "half": lambda i: encoded(i.resize((i.width // 2, i.height // 2)), "JPEG"),
        "quality 30": lambda i: encoded(i, "JPEG", quality=30),
        "cropped by 5 %": lambda i: encoded(cropped(i, 0.05)),
        "cropped by 10 %": lambda i: encoded(cropped(i, 0.10)),
        "mirrored": lambda i: encoded(ImageOps.mirror(i)),
        "upside down": lambda i: encoded(ImageOps.flip(i)),
    }
    originals = [row(path.name, path.read_bytes()) for path in files]
    for name, edit in edits.items():
        copies = []
        for path in files[:-1]:
            with Image.open(path) as image:
                copies.append(row(f"{name} {path.name}", edit(image.convert("RGB"))))
        for training, evaluation in ((copies, originals), (originals, copies)):
            found = overlap(training, evaluation, cache=tmp_path)
            pairs = {
                (m.evaluation.rpartition(" ")[2], m.training.rpartition(" ")[2])
                for m in found.matches
            }
            assert all(one == other for one, other in pairs), name
            assert found.sets[0].num_alike == len(copies), name
            assert found.sets[0].num_same_file == 0, name
            mirrored = len(copies) if name in ("mirrored", "upside down") else 0
            assert found.sets[0].num_mirrored == mirrored, name


def test_questions_count_as_items_only_with_the_same_picture_and_answer(tmp_path):
    one, two, other = (encoded(picture(seed)) for seed in (1, 2, 3))
    training = [
        row("one", one, question="Is the liver shown?", answers=["yes"]),
        row("two", two, question="Which organ?", answers=["heart"]),
        row("pair", other, question="The same?", images=(ImageBytes("one again", one),)),
    ]
    evaluation = [
        row("a", one, question="is THE liver shown", answers=["Yes."]),  # the same item
        row("b", one, question="Is the liver shown?", answers=["no"]),  # another answer
        row("c", other, question="Which organ?", answers=["lung", "heart"]),  # text alone
        row("d", encoded(picture(9)), question="Unasked?"),
    ]
    found = overlap(training, evaluation, cache=tmp_path)
    (test,) = found.sets
    assert (test.num_pictures, test.num_shared) == (3, 2)
    assert (test.num_questions_on_shared, test.num_items, test.num_text_repeats) == (3, 1, 1)
    assert found.training_rows == {"row-one", "row-pair"}


def test_blank_pictures_are_compared_by_their_bytes_alone(tmp_path):
    grey, black = (encoded(Image.new("L", (64, 64), tone)) for tone in (90, 0))
    found = overlap([row("grey", grey)], [row("black", black)], cache=tmp_path)
    assert (found.sets[0].num_shared, found.num_blank) == (0, 2)
    found = overlap([row("grey", grey)], [row("copy", grey)], cache=tmp_path)
    assert found.sets[0].num_same_file == 1


def test_the_index_finds_exactly_the_pairs_that_comparing_all_finds():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (300, 256), dtype=np.uint8)
    near = np.repeat(bits[:100], 8, axis=0)
    for line, number in zip(near, rng.integers(0, 45, len(near)), strict=True):
        line[rng.choice(256, number, replace=False)] ^= 1
    # The hardest: the bits that differ are spread over all sixteen words, as evenly as can be.
    for line, number in zip(near[::8], [15, 16, 17, 31, 32] * 20, strict=True):
        line[:] = bits[0]
        line[[16 * (n % 16) + n // 16 for n in range(number)]] ^= 1
    stored, queries = (np.packbits(b, axis=1).view(np.uint64) for b in (bits, near))
    distances = (near[:, None] != bits[None]).sum(axis=2)
    for max_distance in (0, 15, 16, MAX_DISTANCE):
        query, index, distance = NearIndex(stored, max_distance=max_distance).search(queries)
        expected = np.argwhere(distances <= max_distance)
        assert sorted(zip(query, index, strict=True)) == [tuple(pair) for pair in expected]
        assert (distance == distances[query, index]).all()


def old_file(path, data):
    """Write a file that was changed so long ago that its fingerprint may be kept."""
    path.write_bytes(data)
    os.utime(path, ns=(10**18, 10**18))
    return ImageFile(path)


def test_a_file_that_was_replaced_is_hashed_again_though_size_and_date_stay(tmp_path, monkeypatch):
    monkeypatch.setattr("medvqa.data.image.SETTLED_S", 0.0)
    data = encoded(picture(1), "BMP"), encoded(picture(2), "BMP")
    assert len(data[0]) == len(data[1])
    evaluation = [row("test", data[0])]
    source = old_file(tmp_path / "a.bmp", data[0])
    assert overlap([row("a", source)], evaluation, cache=tmp_path).sets[0].num_shared == 1
    old_file(tmp_path / "a.bmp", data[1])
    assert overlap([row("a", source)], evaluation, cache=tmp_path).sets[0].num_shared == 0


def test_a_known_file_is_not_read_again_and_a_new_one_is_not_trusted_yet(tmp_path, monkeypatch):
    source = old_file(tmp_path / "a.png", encoded(picture(1)))
    assert source.fingerprint() is None  # its change time cannot be set back
    monkeypatch.setattr("medvqa.data.image.SETTLED_S", 0.0)
    rows = [row("a", source)], [row("b", encoded(picture(2)))]
    first = overlap(*rows, cache=tmp_path)
    monkeypatch.setattr(ImageFile, "read", lambda self: pytest.fail("read again"))
    assert overlap(*rows, cache=tmp_path).sets == first.sets


def test_a_damaged_cache_costs_a_warning_and_nothing_else(tmp_path, caplog):
    (path,) = [tmp_path / name for name in (Cache(tmp_path)._path.name,)]
    path.write_bytes(b"no database at all" * 100)
    same = encoded(picture(1))
    assert overlap([row("a", same)], [row("b", same)], cache=tmp_path).sets[0].num_shared == 1
    assert "no cache of hashes" in caplog.text


def test_two_processes_may_fill_one_cache(tmp_path):
    program = (
        "import sys; from pathlib import Path\n"
        "from tests.unit.contamination.test_overlap import *\n"
        "rows = [row(str(n), encoded(picture(n))) for n in range(40)]\n"
        "print(overlap(rows, rows[:20], cache=Path(sys.argv[1])).sets[0].num_same_file)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            stdout=subprocess.PIPE, text=True, env=environment,
        )
        for _ in range(2)
    ]  # fmt: skip
    assert [process.communicate()[0].strip() for process in both] == ["20", "20"]
    (path,) = tmp_path.glob("*.sqlite")
    with sqlite3.connect(path) as stored:
        assert stored.execute(
            "select count(*) from entries where key like 'phash%'"
        ).fetchone() == (60,)


def test_an_unreadable_picture_is_refused_by_name_and_counted_in_a_report(tmp_path):
    broken = encoded(picture(1), "JPEG")[:400]
    rows = [row("broken", broken), row("good", encoded(picture(2)))]
    found = overlap(rows, [row("test", encoded(picture(3)))], cache=tmp_path)
    with pytest.raises(UserError, match=r"handmade/row-broken: image broken is .* \(1 such"):
        allowed_rows(CONFIG, rows, found, expected=False)
    report = ContaminationConfig(action=Contamination.report)
    assert allowed_rows(report, rows, found, expected=False) == rows


def test_a_pool_that_would_lose_every_row_is_refused(tmp_path):
    rows = [row("a", encoded(picture(1)))]
    found = overlap(rows, rows, cache=tmp_path)
    with pytest.raises(UserError, match="leaves no training row"):
        allowed_rows(ContaminationConfig(action=Contamination.drop), rows, found, expected=False)


def test_phantoms_pass_at_their_own_distance_at_which_a_copy_is_still_found(phantoms, tmp_path):
    config = config_of()
    assert config.contamination.max_image_overlap == 0
    pool = load_examples(config.data, seed=0)
    found = measure(config.contamination, pool, {"test": phantoms})
    assert refusal(config.contamination, found) is None
    copies = []
    for number, example in enumerate(phantoms[:20:4]):
        with Image.open(io.BytesIO(example.images[0].read())) as image:
            copies.append(row(f"copy {number}", encoded(image.resize((256, 256)), "JPEG")))
    copied = measure(config.contamination, copies, {"test": phantoms})
    assert copied.training_rows == {copy.id for copy in copies}


def write_leak(directory):
    """Six training rows, of which two show a test picture (one re-encoded), and two test rows."""
    for seed in range(8):
        picture(seed).save(directory / f"{seed}.png")
    picture(6).resize((150, 120)).save(directory / "copy.jpg", quality=80)
    names = ["0.png", "1.png", "2.png", "3.png", "7.png", "copy.jpg"]
    rows = [
        {"id": f"r{n}", "question": f"Which number ({n})?", "answer": "yes" if n % 2 else f"n{n}",
         "image": name}
        for n, name in enumerate(names)
    ]  # fmt: skip
    rows.append({**rows[1], "id": "r6"})
    test = [{"question": f"Is it {n}?", "answer": "no", "image": f"{n}.png"} for n in (6, 7)]
    for split, lines in (("train", rows), ("test", test)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (directory / f"{split}.jsonl").write_text(text)


@pytest.fixture(scope="module")
def leak(tmp_path_factory):
    directory = tmp_path_factory.mktemp("leak")
    write_leak(directory)
    return directory


def train(leak, directory, *overrides):
    return subprocess.run(
        [
            *(sys.executable, str(ROOT / "train.py"), *overrides, "experiment=smoke", "data=jsonl"),
            *(f"data.path={leak}", "data.evaluation.test.limit=2", "training.max_steps=2"),
            "evaluation.bertscore.enabled=false",
        ],
        cwd=directory,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_leak_ends_the_run_before_the_model_loads_in_one_line_with_the_fix(leak, tmp_path):
    answer = train(leak, tmp_path, "hydra.run.dir=run")
    assert answer.returncode == 2, answer.stderr
    last = answer.stderr.splitlines()[-1]
    assert last.startswith("medvqa: contamination: 2 of 2 pictures of data.evaluation.test occur")
    assert "contamination=drop to train without the 2 of 7 training rows concerned" in last
    stored = json.loads((tmp_path / "run" / "contamination.json").read_text())
    assert stored["training_rows"] == ["r4", "r5"]
    assert [m["distance"] is None for m in stored["matches"]] == [True, False]
    assert stored["sets"]["test"]["image_overlap"] == 1.0
    assert "load" not in json.loads((tmp_path / "run" / "run.json").read_text())["seconds"]


def test_a_sweep_is_refused_before_its_first_job(leak, tmp_path):
    answer = train(leak, tmp_path, "-m", "contamination=report,refuse", "hydra.sweep.dir=grid")
    assert answer.returncode == 2, answer.stderr
    assert "job 1 (" in answer.stderr.splitlines()[-1]
    assert "contamination: 2 of 2 pictures" in answer.stderr.splitlines()[-1]
    assert answer.stderr.count("pictures in training") == 1  # compared once for both cells
    assert not list((tmp_path / "grid").glob("*/run.json"))


@pytest.mark.slow
def test_dropped_rows_are_never_trained_on_and_are_counted(leak, tmp_path):
    answer = train(leak, tmp_path, "hydra.run.dir=run", "contamination=drop")
    assert answer.returncode == 0, answer.stderr
    order = (tmp_path / "run" / "order.jsonl").read_text()
    assert '"r6"' in order
    assert '"r4"' not in order and '"r5"' not in order
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"]["training"]["num_examples"] == 5
    assert record["contamination"]["num_dropped"] == 2
    assert record["contamination"]["sets"]["test"]["image_overlap"] == 1.0
