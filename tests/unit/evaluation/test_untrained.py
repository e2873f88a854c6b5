"""Evaluating without training: any base, adapter or server, with the records of a run."""

import pytest

from medvqa.config.compose import resolved
from medvqa.config.errors import UserError
from medvqa.config.identity import run_id
from medvqa.config.typed import typed
from medvqa.run import ProcessState, run
from medvqa.tracking.record import read_lines
from tests.unit.config.test_compose import composed

SHORT = (
    *("only_evaluate=true", "tracking=disabled", "tracking.pictures=false"),
    "data.evaluation_limit=6",
    *("evaluation.bertscore.enabled=false", "evaluation.max_new_tokens=2"),
    *("model.max_pixels=16384", "evaluation.bootstrap_samples=20"),
)


def evaluate(directory, *overrides):
    cfg = composed(*SHORT, *overrides)
    values = resolved(cfg)
    settings = {"config": values, "overrides": list(overrides), "run_id": run_id(values)}
    run(typed(cfg), directory, settings, ProcessState())
    return read_lines(directory / "evaluation" / "final" / "test" / "predictions.jsonl")


def test_what_is_no_adapter_or_belongs_to_training_is_refused(tmp_path):
    (tmp_path / "adapter").write_text("a file")
    for place in (tmp_path, tmp_path / "adapter"):
        with pytest.raises(UserError, match="holds no adapter_config"):
            evaluate(tmp_path / "run", f"adapter={place}")
    for overrides, message in (
        (["only_evaluate=false", "adapter=x"], "belong to `medvqa evaluate`"),
        (["endpoint=http://localhost"], "belong together"),
        (["endpoint=http://localhost", "model_name=m", "adapter=x"], "the server has it"),
        (["only_evaluate=false", "training.max_steps=0"], "`medvqa evaluate"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(tmp_path / "other", *overrides)
