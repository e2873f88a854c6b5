"""A run on a small Kvasir-VQA-x1 becomes the Medico challenge's file; a sample of it does not."""

import json

import pytest
from hydra import compose, initialize_config_dir

from medvqa.cli import register
from medvqa.config.compose import resolved
from medvqa.config.errors import UserError
from medvqa.config.typed import typed
from medvqa.export.command import main_export
from medvqa.run import ProcessState, run
from tests.conftest import ROOT
from tests.copies import picture

datasets = pytest.importorskip("datasets")
NUM_ROWS = 12
SHORT = (
    *("data=kvasir_vqa_x1", "curriculum=by_complexity", "contamination=report"),
    *("tracking=disabled", "training.max_steps=3", "training.micro_batch_size=2"),
    "tracking.pictures=false",
    *("evaluation.zero_shot=false", "evaluation.bertscore.enabled=false"),
    *("evaluation.max_new_tokens=2", "evaluation.after_each_stage=false"),
)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kvasir")
    text = datasets.Value("string")
    for first, split in ((0, "train"), (50, "test")):
        numbers = range(first, first + NUM_ROWS)
        columns = {
            "image": [{"bytes": picture(n), "path": None} for n in numbers],
            "img_id": [f"cl{n}" for n in numbers],
            "complexity": [1 + n % 3 for n in numbers],
            "question": [f"What is seen in picture {n}?" for n in numbers],
            "answer": [f"finding {n}" for n in numbers],
        }
        features = dict.fromkeys(columns, text) | {"image": datasets.Image()}
        features["complexity"] = datasets.Value("int64")
        datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(
            folder / f"{split}-00000-of-00001.parquet"
        )
    return folder


def finished(copy, directory, *overrides):
    register()
    overrides = (*SHORT, f"data.path={copy}", *overrides)
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        values = resolved(compose("config", list(overrides)))
    settings = {"config": values, "overrides": list(overrides), "run_id": "0", "sweep": None}
    run(typed(values), directory, settings, ProcessState())
    return directory


def test_the_file_holds_every_answer_under_the_challenges_names(copy, tmp_path, capsys):
    directory = finished(copy, tmp_path / "run")
    plan = json.loads((directory / "run.json").read_text())["plan"]
    assert [stage["levels"] for stage in plan["stages"]] == [{"1": 2}, {"2": 2}, {"3": 2}]
    main_export([str(directory), "--medico", str(tmp_path / "medico")])
    written = json.loads((tmp_path / "medico" / "predictions_1.json").read_text())
    entries = written["predictions"]
    assert [sorted(entry) for entry in entries] == [["answer", "img_id", "index", "question"]] * 12
    assert {e["img_id"]: e["question"] for e in entries} == {
        f"cl{n}": f"What is seen in picture {n}?" for n in range(50, 62)
    }
    assert "Team_Name" in written["submission_info"]
    assert not (tmp_path / "medico" / "submission_task2.jsonl").exists()
    with pytest.raises(UserError, match="--medico goes with no other"):
        main_export([str(directory), "--medico", str(tmp_path / "other"), "--merge"])


def test_a_sample_of_the_test_split_is_refused(copy, tmp_path):
    directory = finished(copy, tmp_path / "run", "data.evaluation_limit=4")
    with pytest.raises(UserError, match="has answered a sample"):
        main_export([str(directory), "--medico", str(tmp_path / "medico")])
    assert not (tmp_path / "medico").exists()
