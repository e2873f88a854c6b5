"""Runs tracked by the real W&B, offline and against servers of our own."""

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from medvqa.config.tracking import TrackingConfig, TrackingMode
from medvqa.data.example import Example
from medvqa.data.image import ImageBytes
from medvqa.tracking import wandb_mirror as tracking
from medvqa.tracking.wandb_mirror import tracker
from tests.loopback import body, served

OFFLINE = TrackingConfig(mode=TrackingMode.offline, tags=["smoke"], table_rows=2)
Record = dict[str, Any]


pytestmark = pytest.mark.usefixtures("no_wandb_account")


def read_log(directory: Path) -> list[Record]:
    """Return the records of the one .wandb file below the directory, by W&B's own reader."""
    (path,) = directory.rglob("*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in lines.splitlines()]


def of_type(records: list[Record], name: str) -> list[Record]:
    return [record[name] for record in records if record["type"] == name]


def rows(records: list[Record]) -> list[Record]:
    return [history["item"] for history in of_type(records, "history")]


def picture(width: int, height: int, shade: int) -> ImageBytes:
    data = io.BytesIO()
    Image.new("L", (width, height), shade).save(data, "PNG")
    return ImageBytes(f"image {shade}", data.getvalue())


def questions(num: int) -> list[Example]:
    """The first has two images, the others one."""
    return [
        Example(
            id=f"q{i}",
            images=tuple(picture(600, 300, 50 * i + k) for k in range(2 if i == 0 else 1)),
            question="where?",
            answers=("left", "left lung"),
            answer_type="open",
            type_origin="rule",
            source="toy",
            split="test",
            image_ids=("a",),
        )
        for i in range(num)
    ]


def write_predictions(path: Path, examples: list[Example]) -> Path:
    lines = [
        {
            "id": example.id,
            "question": example.question,
            "references": list(example.answers),
            "prediction": "left",
            "answer_type": "open",
            "exact_match": 1.0,
            "f1": 0.5,
        }
        for example in examples
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Record], str]:
    """A run directory after a tracked run of two stages, its log, and what our logger said."""
    directory = tmp_path_factory.mktemp("runs") / "tiny-s1"
    directory.mkdir()
    examples = questions(3)
    path = write_predictions(directory / "predictions.jsonl", examples)
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logger = logging.getLogger("medvqa")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_MODE", raising=False)
        patch.setattr(sys, "argv", ["train.py", "hub.token=s3cret", "seed=1"])
        before = logger.level
        # Not by setting the attribute: loggers remember what the level let through.
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        settings = {"config": {"seed": 1, "lora": {"r": 16}}, "sweep": "study"}
        with tracker(OFFLINE, directory, settings) as run:
            run.log({"train/loss": 2.0, "train/stage": "open"}, step=1)
            run.log({"eval/rad/overall/exact_match": 0.25}, step=1)
            run.log({"train/loss": 1.5, "train/stage": "closed"}, step=2)
            run.log_predictions("rad", path, examples)
            run.summarize({"train/final_loss": 1.5})
        logger.removeHandler(handler)
        logger.setLevel(before)
    return directory, read_log(directory), said.getvalue()


Tracked = tuple[Path, list[Record], str]


def test_the_step_goes_on_across_stages(tracked: Tracked) -> None:
    names = ("train/global_step", "train/loss", "train/stage", "eval/rad/overall/exact_match")
    found = [tuple(row.get(name) for name in names) for row in rows(tracked[1])[:3]]
    assert found == [(1, 2.0, "open", None), (1, None, None, 0.25), (2, 1.5, "closed", None)]


def test_curves_are_drawn_over_our_step(tracked: Tracked) -> None:
    axes = {
        metric["glob_name"]: metric["step_metric"]
        for metric in of_type(tracked[1], "metric")
        if "glob_name" in metric
    }
    assert axes == {"train/*": "train/global_step", "eval/*": "train/global_step"}


def test_the_config_is_nested_and_the_run_is_named_grouped_and_tagged(tracked: Tracked) -> None:
    run = of_type(tracked[1], "run")[0]
    config = {k: v for k, v in run["config"]["update"].items() if k != "_wandb"}
    assert config == {"medvqa": {"seed": 1, "lora": {"r": 16}}}
    assert (run["display_name"], run["run_group"], run["job_type"], run["tags"]) == (
        *("tiny-s1", "study", "train"),
        ["smoke"],
    )


def test_a_whole_run_exits_with_0_and_has_its_summary(tracked: Tracked) -> None:
    assert [e.get("exit_code", 0) for e in of_type(tracked[1], "exit")] == [0]
    summary = {}
    for update in of_type(tracked[1], "summary"):
        summary.update(update["update"])
    assert summary["train/final_loss"] == 1.5


def test_the_table_holds_capped_rows_with_all_their_images(tracked: Tracked) -> None:
    (path,) = tracked[0].rglob("*.table.json")
    table = json.loads(path.read_text())
    assert table["columns"][0] == "images"
    assert [(row[0], row[1], row[-2:]) for row in table["data"]] == [
        (["Image", "Image"], "q0", [1.0, 0.5]),
        (["Image"], "q1", [1.0, 0.5]),
    ]
    assert "table rad shows 2 of 3 rows" in tracked[2]


def test_table_images_are_small_and_stay_in_the_run_directory(tracked: Tracked) -> None:
    (artifact,) = of_type(tracked[1], "artifact")
    staged = [
        Path(entry["local_path"])
        for entry in artifact["manifest"]["contents"]
        if entry["path"].endswith(".png")
    ]
    assert len(staged) == 3
    for path in staged:
        assert path.is_relative_to(tracked[0])
        with Image.open(path) as image:
            assert image.size == (256, 128)


def test_the_log_holds_no_secret_and_the_arguments_are_restored(tracked: Tracked) -> None:
    assert of_type(tracked[1], "environment")[0]["args"] == ["hub.token=***", "seed=1"]
    assert "hub.token=***" not in sys.argv


def test_the_user_is_told_how_to_upload(tracked: Tracked) -> None:
    (offline,) = tracked[0].glob("wandb/offline-run-*")
    assert f"wandb sync {offline}" in tracked[2]


def test_three_runs_in_one_process_stay_three_and_the_failed_one_failed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two", "three"):
        try:
            with tracker(OFFLINE, tmp_path / name, {}) as run:
                run.log({"train/loss": 1.0}, step=1)
                if name == "two":
                    raise RuntimeError("boom")
        except RuntimeError as error:
            assert str(error) == "boom"
    logs = {name: read_log(tmp_path / name) for name in ("one", "two", "three")}
    assert {n: of_type(log, "exit")[0].get("exit_code", 0) for n, log in logs.items()} == {
        "one": 0,
        "two": 1,
        "three": 0,
    }
    assert len({of_type(log, "run")[0]["run_id"] for log in logs.values()}) == 3
    assert [len(rows(log)) for log in logs.values()] == [1, 1, 1]
    assert "WANDB_DATA_DIR" not in os.environ
    # No banner, and no traceback where the command line says one line.
    assert "".join(capfd.readouterr()) == ""


def test_without_network_an_online_run_goes_offline_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(tracking, "INIT_TIMEOUT_S", 1)
    config = TrackingConfig(mode=TrackingMode.auto)
    with tracker(config, tmp_path / "run", {"sweep": "g"}) as run:
        run.log({"train/loss": 1.0}, step=1)
    assert "W&B cannot be reached" in caplog.text
    (offline,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert len(rows(read_log(offline))) == 1
    online_id = (tmp_path / "run" / "wandb_id").read_text()
    # A later online start goes on with its own id; the offline log must not share it.
    assert online_id not in offline.name


def test_resuming_offline_takes_a_fresh_id_in_the_same_group(tmp_path: Path) -> None:
    for _ in range(2):
        with tracker(OFFLINE, tmp_path, {"sweep": "study"}) as run:
            run.log({"train/loss": 1.0}, step=1)
    runs = [of_type(read_log(p), "run")[0] for p in tmp_path.glob("wandb/offline-run-*")]
    assert len({run["run_id"] for run in runs}) == 2
    assert [run["run_group"] for run in runs] == ["study", "study"]


KEY = {"WANDB_API_KEY": "0" * 40}


def recorded(server: Any) -> list[str]:
    return [path for path, _, _ in server.requests]


def test_an_offline_run_asks_no_server_whatever_the_variables_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(body(b"{}")) as server:
        variables = {**KEY, "WANDB_BASE_URL": f"http://127.0.0.1:{server.port}"}
        variables |= {"WANDB_MODE": "online", "WANDB_SAVE_CODE": "true", "WANDB_CONSOLE": "wrap"}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with tracker(OFFLINE, tmp_path, {}) as run:
            run.log({"train/loss": 1.0}, step=1)
    assert recorded(server) == []
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert not {name for name in files if name.endswith((".py", ".patch", "output.log"))}


def test_wandb_sync_reads_the_directory_that_the_log_names(tmp_path: Path) -> None:
    with tracker(OFFLINE, tmp_path, {"sweep": "study"}) as run:
        run.log({"train/loss": 1.0}, step=1)
    (offline,) = tmp_path.glob("wandb/offline-run-*")
    with served(body(b'{"errors": [{"message": "no"}]}', status=400)) as server:
        url = f"http://127.0.0.1:{server.port}"
        subprocess.run(
            [sys.executable, "-m", "wandb", "sync", str(offline)],
            env={**os.environ, **KEY, "WANDB_BASE_URL": url},
            capture_output=True,
            check=False,
        )
    uploads = [body for path, _, body in server.requests if path == "/graphql"]
    assert any(b"UpsertBucket" in body and b'"groupName":"study"' in body for body in uploads)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("WANDB_TAGS", "x" * 100, "W&B refuses its settings (run_tags: "),
        ("WANDB_CONSOLE", "nope", "W&B refuses its settings (console: "),
        ("WANDB_MODE", "", "tracked"),
    ],
)
def test_a_variable_that_wandb_refuses_is_one_line(
    tmp_path: Path, name: str, value: str, reason: str
) -> None:
    # W&B reads the variables once per process.
    program = (
        "import pathlib\n"
        "from medvqa.config.errors import UserError\n"
        "from medvqa.config.tracking import TrackingConfig\n"
        "from medvqa.tracking.wandb_mirror import tracker\n"
        "try:\n"
        "    with tracker(TrackingConfig(), pathlib.Path.cwd(), {}): print('tracked')\n"
        "except UserError as error: print(error)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path, env={**os.environ, name: value}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert reason in answer.stdout
    assert len(answer.stdout.splitlines()) == 1
