"""Leaks between real pools are found, and a leak ends a run or a grid before it costs anything."""

import io
import json
import os
import sqlite3
import subprocess
import sys

import pytest
from PIL import Image, ImageOps

from medvqa.api import compose, run
from medvqa.contamination.gate import measure, refusal
from medvqa.data.pool import load_examples
from tests.conftest import ROOT, forked
from tests.forked import CLI
from tests.unit.config.test_compose import config_of
from tests.unit.contamination.test_overlap import (
    CONFIG,
    encoded,
    overlap,
    picture,
    row,
    vqa_rad,
)


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


def small(leak):
    return (
        *("experiment=smoke", "data=jsonl", f"data.path={leak}", "data.evaluation.test.limit=2"),
        *("training.max_steps=2", "evaluation.bertscore.enabled=false"),
        "tracking.pictures=false",
    )


def train(leak, directory, *overrides):
    return forked(directory, *overrides, *small(leak), imports=CLI).wait()


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
    run(compose([*small(leak), "contamination=drop"]), directory=tmp_path / "run", verbose=False)
    order = (tmp_path / "run" / "order.jsonl").read_text()
    assert '"r6"' in order
    assert '"r4"' not in order and '"r5"' not in order
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"]["training"]["num_examples"] == 5
    assert record["contamination"]["num_dropped"] == 2
    assert not list((tmp_path / "run").glob("*.png"))  # tracking.pictures=false
    assert record["contamination"]["sets"]["test"]["image_overlap"] == 1.0
