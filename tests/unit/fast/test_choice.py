"""`auto` takes the fastest path that is proven equal, and one line gives path and reason."""

import dataclasses

import pytest

from medvqa.config.errors import UserError
from medvqa.config.evaluation import Decoding
from medvqa.config.model import Backend
from medvqa.config.training import Engine
from medvqa.fast.choice import FAMILIES, choose_path, make_engine, path_of
from medvqa.fast.engine import FusedEngine
from medvqa.models.plain import PlainEngine

AUTO = Backend.auto, Engine.auto, Decoding.auto


def names(path):
    return path.backend.value, path.engine.value, path.decoding.value


@pytest.mark.parametrize("family", FAMILIES)
def test_auto_is_the_fused_engine_on_a_gpu_and_the_reference_on_a_cpu(family):
    on_gpu = path_of(family, *AUTO, on_gpu=True)
    assert names(on_gpu) == ("transformers", "fused", "shared_prefix")
    on_cpu = path_of(family, *AUTO, on_gpu=False)
    assert names(on_cpu) == ("transformers", "plain", "shared_prefix")


def test_another_family_runs_on_the_plain_engine_and_the_line_names_the_cost():
    path = path_of("gemma3", *AUTO, on_gpu=True)
    assert names(path) == ("transformers", "plain", "plain")
    assert "does not support gemma3" in path.line and "1.4 times" in path.line
    assert "\n" not in path.line


def test_unsloth_is_taken_only_where_it_is_configured():
    path = path_of("qwen3_vl", Backend.unsloth, Engine.auto, Decoding.auto, on_gpu=True)
    assert names(path) == ("unsloth", "plain", "plain")


@pytest.mark.parametrize(
    ("engine", "decoding", "message"),
    [
        (Engine.fused, Decoding.auto, "training.engine=fused cannot compute gemma3 .*=auto"),
        (Engine.auto, Decoding.shared_prefix, "evaluation.decoding=shared_prefix cannot .*=auto"),
    ],
)
def test_the_fused_engine_is_refused_for_a_model_that_it_does_not_support(
    engine, decoding, message
):
    with pytest.raises(UserError, match=message):
        path_of("gemma3", Backend.auto, engine, decoding, on_gpu=True)


def test_the_loaded_model_decides_and_every_choice_has_an_engine(tiny, encoder):
    path = choose_path(tiny, Engine.auto, Decoding.auto)
    assert names(path) == ("transformers", "plain", "shared_prefix")
    assert isinstance(make_engine(path.engine, tiny, encoder), PlainEngine)
    assert isinstance(make_engine(path.decoding, tiny, encoder), FusedEngine)
    unsloth = dataclasses.replace(tiny, backend=Backend.unsloth)
    assert choose_path(unsloth, Engine.auto, Decoding.auto).decoding is Decoding.plain
