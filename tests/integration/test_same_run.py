"""One directory, one run: what may be continued or shown, and what is left as it was."""

import json
import signal

import pytest

from medvqa.tracking.record import read_lines
from tests import copies
from tests.conftest import call, forked, wait_for

OVERRIDES = (
    *("experiment=smoke", "data=jsonl", "contamination=report", "curriculum=whole_pool"),
    *("training.max_steps=60", "training.checkpoint_every=2", "training.micro_batch_size=2"),
    *("training.accumulation_steps=1", "evaluation.bertscore.enabled=false"),
    "tracking.pictures=false",
    *("evaluation.zero_shot=false", "evaluation.max_new_tokens=4"),
)


def write_rows(folder):
    folder.mkdir(parents=True)
    answers = ["left lung", "yes", "heart", "no"]
    for split, first in (("train", 0), ("test", 50)):
        rows = []
        for n in range(first, first + 8):
            (folder / f"{n}.jpg").write_bytes(copies.picture(n))
            rows.append({"question": f"q{n}?", "answer": answers[n % 4], "image": f"{n}.jpg"})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines)
    return folder


def edit(path):
    path.write_text(path.read_text().replace('"yes"', '"no"', 1))


def snapshot(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name not in (".lock", "medvqa.log")
    }


def assert_refused(answer, *texts):
    assert answer.returncode == 2, answer.stderr
    lines = [line for line in answer.stderr.splitlines() if line.startswith("medvqa: ")]
    assert len(lines) == 1
    assert "Traceback" not in answer.stderr
    for text in (*texts, "fresh=true"):
        assert text in lines[0]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Return the data and the directory of a run that was killed behind a checkpoint."""
    place = tmp_path_factory.mktemp("killed")
    data, run = write_rows(place / "data"), place / "run"
    process = forked(place, f"hydra.run.dir={run}", *OVERRIDES, f"data.path={data}")
    wait_for(lambda: list(run.glob("checkpoints/step-*")))
    process.send_signal(signal.SIGKILL)
    assert process.wait().returncode == -signal.SIGKILL
    assert len(read_lines(run / "metrics.jsonl")) < 60
    return data, run


@pytest.mark.slow
def test_other_settings_do_not_continue_a_killed_run_and_nothing_of_it_changes(killed):
    data, run = killed
    before = snapshot(run)
    answer = call(run, *OVERRIDES, f"data.path={data}", "training.learning_rate=1e-5", "lora.r=4")
    assert_refused(answer, "training.learning_rate 0.002 -> 1e-05", "lora.r 16 -> 4")
    assert snapshot(run) == before


@pytest.mark.slow
@pytest.mark.parametrize(("split", "owner"), [("train", "the training rows"), ("test", "test")])
def test_edited_rows_do_not_continue_a_killed_run(killed, split, owner):
    data, run = killed
    path = data / f"{split}.jsonl"
    original = path.read_text()
    edit(path)
    try:
        answer = call(run, *OVERRIDES, f"data.path={data}")
        assert_refused(answer, owner, "have changed")
    finally:
        path.write_text(original)


@pytest.mark.slow
def test_a_finished_run_is_shown_for_its_own_rows_only_and_sigterm_marks_it(tmp_path):
    data, run = write_rows(tmp_path / "data"), tmp_path / "run"
    short = ("training.max_steps=16", "training.checkpoint_every=8")
    arguments = (*OVERRIDES, *short, f"data.path={data}")
    process = forked(tmp_path, f"hydra.run.dir={run}", *arguments)
    wait_for((run / "metrics.jsonl").exists)
    process.send_signal(signal.SIGTERM)
    answer = process.wait()
    assert answer.returncode == 130
    assert "interrupted; the same command goes on" in answer.stderr
    assert json.loads((run / "run.json").read_text())["state"] == "interrupted"
    (run / f".results.json.{process.pid}").write_text("{")  # of a kill in the middle of writing

    finished = call(run, *arguments)
    assert finished.returncode == 0, finished.stderr
    assert not list(run.glob(".results.json.*"))
    record = json.loads((run / "run.json").read_text())
    assert record["code"].keys() == {"sha256", "torch", "transformers", "engine"}
    assert record["code"]["engine"] == "plain"

    edit(data / "test.jsonl")
    assert_refused(call(run, *arguments), "the rows of test have changed")
    again = call(run, *arguments, "fresh=true")
    assert again.returncode == 0, again.stderr
    assert (run / "previous-1" / "run.json").is_file()
    assert (run / "previous-1" / ".hydra" / "config.yaml").is_file()
    assert (run / ".hydra" / "config.yaml").is_file()
