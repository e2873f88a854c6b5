"""Each family runs from `train.py model=hub` to a served answer, with tiny random weights."""

import json

import pytest

from medvqa.config.compose import resolved
from medvqa.config.typed import typed
from medvqa.data.image import ImageBytes
from medvqa.data.pool import load_sets
from medvqa.export.command import ExportOptions, export
from medvqa.models.load import load_model
from medvqa.models.trained import read_trained
from medvqa.run import ProcessState, run
from medvqa.serve.answering import Answerer
from medvqa.serve.intake import Question
from medvqa.tracking.record import read_lines
from tests.conftest import SHARED
from tests.tiny_models import FAMILIES, MADE_HERE, save_tiny
from tests.unit.config.test_compose import composed

STEPS = 4


def execute(overrides, directory, load=load_model):
    values = resolved(composed(*overrides))
    settings = {"config": values, "overrides": list(overrides), "run_id": directory.name}
    run(typed(values), directory=directory, settings=settings, process=ProcessState(load))


@pytest.fixture(scope="module", params=FAMILIES)
def family_run(request, tmp_path_factory):
    """The overrides and the directory of a finished run."""
    if request.param not in MADE_HERE:
        request.getfixturevalue("shared")  # skips where the real files are absent
    place = tmp_path_factory.mktemp(request.param)
    save_tiny(request.param, place / "base", SHARED)
    overrides = (
        *("model=hub", f"model.name={place / 'base'}", "training=default", "tracking=disabled"),
        *(f"training.max_steps={STEPS}", "training.checkpoint_every=2", "training.warmup_steps=1"),
        *("training.learning_rate=0.01", "lora.dropout=0.1", "evaluation.max_new_tokens=6"),
        *("training.accumulation_steps=1", "tracking.pictures=false"),
        *("data.limit=40", "data.evaluation.test.limit=10", "evaluation.zero_shot=false"),
        *("evaluation.bertscore.enabled=false", "evaluation.after_each_stage=false"),
    )
    execute(overrides, place / "run")
    return overrides, place / "run"


def answers(directory, phase="final"):
    path = directory / "evaluation" / phase / "test" / "predictions.jsonl"
    return {row["id"]: row["prediction"] for row in read_lines(path)}


def test_training_ends_with_a_record_of_the_engine_and_the_adapted_layers(family_run):
    _, directory = family_run
    values = json.loads((directory / "run.json").read_text())
    assert values["state"] == "finished"
    assert values["training"]["engine"] == "plain"
    assert {"q_proj", "v_proj", "down_proj"} <= set(values["model"]["adapted_layers"])
    assert len(answers(directory)) == 10


def test_a_continued_run_ends_as_the_whole_one(family_run, tmp_path):
    overrides, whole = family_run

    def load_and_interrupt(*arguments, **options):
        """Load a model whose third step is interrupted, as by Ctrl-C."""
        loaded = load_model(*arguments, **options)
        passes = []

        def count(*_):
            passes.append(1)
            if len(passes) > STEPS // 2:  # one micro-batch per step
                raise KeyboardInterrupt

        loaded.model.register_forward_pre_hook(count)
        return loaded

    with pytest.raises(KeyboardInterrupt):
        execute(overrides, tmp_path / "run", load=load_and_interrupt)
    execute(overrides, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["training"]["resumed_from_step"] == STEPS // 2
    adapter = "adapter/adapter_model.safetensors"
    assert (tmp_path / "run" / adapter).read_bytes() == (whole / adapter).read_bytes()
    assert answers(tmp_path / "run") == answers(whole)


def test_what_is_served_is_what_was_evaluated(family_run):
    _, directory = family_run
    config = read_trained(directory).values["config"]
    examples = load_sets(typed(config).data)["test"].examples
    questions = [
        Question(
            text=example.question,
            images=tuple(ImageBytes(image.name, image.read()) for image in example.images),
        )
        for example in examples
    ]
    served = [answer.text for answer in Answerer.of_run(directory).answer(questions)]
    evaluated = answers(directory)
    assert served == [evaluated[example.id] for example in examples]


def test_the_merged_model_answers_as_the_run_did(family_run, tmp_path):
    _, directory = family_run
    target = export(ExportOptions(run=directory, target=tmp_path / "merged", is_merged=True))
    counts = json.loads((target / "export.json").read_text())["merge"]["equal_answers"]["test"]
    assert counts == {"equal": 10, "of": 10}
