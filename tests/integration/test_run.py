"""The command itself, as a process: records, repetition, SIGKILL, real images, mistakes."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from medvqa.api import UserError, compose, run
from medvqa.data.plan import order_sha256
from medvqa.models.source import EMBEDDED
from medvqa.tracking.record import read_lines
from tests.conftest import SMOKE, TINY, call, forked, wait_for


def run_json(directory):
    return json.loads((directory / "run.json").read_text())


@pytest.mark.slow
def test_a_run_leaves_every_record(finished):
    directory, answer = finished
    record = run_json(directory)
    assert record["state"] == "finished"
    assert record["config"]["lora"]["r"] == 16
    assert record["overrides"] == [*SMOKE, "tracking.mode=offline"]
    assert record["data"]["training"]["num_examples"] == 4000
    assert record["model"]["num_adapted_layers"] == 4 * 7
    assert set(record["seconds"]) >= {"data", "load", "evaluate"}
    assert record["training"]["optimizer"] == "adamw (torch)"
    metrics = read_lines(directory / "metrics.jsonl")
    assert [row["step"] for row in metrics] == list(range(1, 13))
    assert {"loss", "learning_rate", "num_tokens", "stage"} <= set(metrics[0])
    consumed = [i for row in read_lines(directory / "order.jsonl") for i in row["ids"]]
    assert order_sha256(consumed) == record["plan"]["order_sha256"]
    assert (directory / "adapter" / "adapter_model.safetensors").is_file()
    assert "[[" in (directory / "preview.txt").read_text()
    phases = {path.name for path in (directory / "evaluation").iterdir()}
    assert phases == {"majority", "zero_shot", "after_open", "final"}
    assert "final" in answer.stdout
    assert "test: mean [95 % interval]" in answer.stdout


@pytest.mark.slow
def test_predictions_hold_question_references_answer_and_scores(finished):
    directory, _ = finished
    rows = read_lines(directory / "evaluation" / "final" / "test" / "predictions.jsonl")
    assert len(rows) == 40
    keys = {"id", "question", "references", "prediction", "answer_type", "exact_match", "f1"}
    assert keys <= set(rows[0])
    summary = json.loads(
        (directory / "evaluation" / "final" / "test" / "metrics.json").read_text()
    )["summary"]
    mean = sum(row["exact_match"] for row in rows) / len(rows)
    assert summary["overall"]["exact_match"]["mean"] == pytest.approx(mean)
    assert summary["overall"]["exact_match"]["num_examples"] == 40


@pytest.mark.slow
def test_results_json_quotes_each_mean_with_its_protocol_and_provenance(finished):
    directory, _ = finished
    results, record = json.loads((directory / "results.json").read_text()), run_json(directory)
    assert results["schema_version"] == 1
    (quoted,) = (
        row
        for row in results["scores"]
        if (row["phase"], row["group"], row["metric"]) == ("final", "overall", "exact_match")
    )
    rows = read_lines(directory / "evaluation" / "final" / "test" / "predictions.jsonl")
    assert quoted["mean"] == sum(row["exact_match"] for row in rows) / 40 == results["headline"]
    assert quoted["low"] <= quoted["mean"] <= quoted["high"]
    assert quoted["num_examples"] == 40
    assert {row["phase"] for row in results["scores"]} == {
        *("majority", "zero_shot", "after_open", "final")
    }
    assert results["budget"]["num_steps"] == 12
    assert results["budget"]["num_examples"] == 12 * 4
    assert results["order_sha256"] == record["plan"]["order_sha256"]
    assert results["code"] == record["git"]
    assert results["packages"]["torch"] == record["environment"]["packages"]["torch"]
    assert results["protocol"]["test"]["normalizer"] == "medical"
    assert results["protocol"]["test"]["bertscore"]["model"] == "minilm"
    assert (results["seed"], results["choices"]["curriculum"]) == (0, "open_first")


@pytest.mark.slow
def test_a_run_ends_with_its_pictures_and_wandb_has_them_with_the_intervals(finished):
    directory, _ = finished
    (log,) = directory.glob("wandb/offline-run-*")
    told = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in ("loss", "metrics", "samples"):
        (copy,) = log.glob(f"files/media/images/pictures/{name}_*.png")
        assert copy.read_bytes() == (directory / f"{name}.png").read_bytes()
        assert f'"pictures/{name}.path"' in told or f'"pictures/{name}"' in told
    assert "final/test/open/f1_low" in told


@pytest.mark.slow
def test_wandb_was_told_losses_metrics_by_stage_and_predictions(finished):
    directory, _ = finished
    (log,) = directory.glob("wandb/offline-run-*")
    answer = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(log)],
        capture_output=True,
        text=True,
        check=True,
    )
    for name in ("train/loss", "eval/test/final/overall/exact_match", "eval/test/after_open"):
        assert name in answer.stdout
    tables = list(directory.rglob("predictions/test*.table.json"))
    assert tables
    assert len(json.loads(tables[0].read_text())["data"]) == 40


@pytest.mark.slow
def test_the_same_command_shows_a_finished_run_and_fresh_keeps_the_old_one(finished):
    directory, first = finished
    again = call(directory, *SMOKE, "tracking.mode=offline")
    assert again.returncode == 0, again.stderr
    assert "finished already; fresh=true" in again.stderr
    assert again.stdout.splitlines()[:20] == first.stdout.splitlines()[:20]
    assert run_json(directory)["num_starts"] == 1


@pytest.mark.slow
def test_a_run_killed_in_a_stage_goes_on_with_the_same_ids(finished, tmp_path):
    whole, _ = finished
    directory = tmp_path / "run"
    process = forked(tmp_path, f"hydra.run.dir={directory}", *SMOKE)
    # Stage two begins with step 7; the checkpoint of step 8 is behind and step 12 is ahead.
    wait_for(lambda: len(read_lines(directory / "order.jsonl")) >= 9)
    process.send_signal(signal.SIGKILL)
    assert process.wait().returncode == -signal.SIGKILL
    before = read_lines(directory / "order.jsonl")
    assert run_json(directory)["state"] == "running"

    answer = call(directory, *SMOKE)
    assert answer.returncode == 0, answer.stderr
    record = run_json(directory)
    assert record["num_starts"] == 2
    assert record["training"]["resumed_from_step"] in range(4, len(before) + 1)
    # Also of the evaluation that the killed process had made.
    assert record["evaluation_seconds"].keys() == run_json(whole)["evaluation_seconds"].keys()
    assert len(record["evaluation_seconds"]) > 1
    assert read_lines(directory / "order.jsonl") == read_lines(whole / "order.jsonl")
    losses = [
        [row["loss"] for row in read_lines(run / "metrics.jsonl")] for run in (whole, directory)
    ]
    assert losses[0] == losses[1]
    final = Path("evaluation/final/test/predictions.jsonl")
    assert (directory / final).read_text() == (whole / final).read_text()


@pytest.mark.slow
def test_vqa_rad_trains_and_evaluates_on_real_images(shared, tmp_path):
    overrides = [
        "experiment=smoke",
        "data=vqa_rad",
        "data.allow_training_rows=true",
        "data.evaluation.test.split=all",
        f"data.path={shared / 'data' / 'vqa_rad'}",
        "data.evaluation_limit=60",
        "evaluation.zero_shot=false",
        "evaluation.after_each_stage=false",
        "evaluation.bertscore.enabled=false",
        "tracking.pictures=false",
    ]
    run(compose(overrides), directory=tmp_path / "run", verbose=False)
    record = run_json(tmp_path / "run")
    assert record["data"]["training"]["num_examples"] == 1797
    assert record["data"]["training"]["type_origins"] == {"official": 1797}
    groups = json.loads(
        (tmp_path / "run" / "evaluation" / "final" / "test" / "metrics.json").read_text()
    )["summary"]
    assert {"overall", "open", "closed", "split:train", "split:test"} <= set(groups)


def test_a_mistake_in_the_data_is_one_line_and_exit_code_2(tmp_path):
    answer = call(tmp_path / "run", "data.split=tain")
    assert answer.returncode == 2
    assert answer.stderr.startswith("medvqa: phantom has no split 'tain'; it has train, validation")
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("curriculum.stages.0.quota=99999", "quota=99999, but the pool has only 1970 open"),
        ("model.path=/nowhere", "model.path=/nowhere holds no config.json"),
        ("data.limit=5000", "limit=5000, but there are only 4000 rows"),
    ],
)
def test_a_mistake_in_the_data_is_an_error_before_the_model_loads(tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        run(compose([override]), directory=tmp_path / "run", verbose=False)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_sample_that_is_too_long_is_said_before_the_weights_are_read(tmp_path):
    base = tmp_path / "base"
    shutil.copytree(EMBEDDED[TINY.name], base)
    (base / "model.safetensors").write_bytes(b"not read")
    config = compose([*SMOKE, f"model.path={base}", "model.max_length_tokens=60"])
    message = "samples are longer than model.max_length_tokens=60, the longest, phantom/"
    with pytest.raises(UserError, match=message):
        run(config, directory=tmp_path / "run", verbose=False)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_run_imports_none_of_the_packages_that_its_libraries_would_take_along(finished):
    imported = set(finished[1].stdout.splitlines()[-1].split())
    assert "transformers" in imported
    assert "bert_score" in imported
    assert not imported & {"scipy", "sklearn", "boto3", "matplotlib.pyplot"}
