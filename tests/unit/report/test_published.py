"""The published rows are the design's numbers; protocol differences are named."""

import pytest
from omegaconf import OmegaConf

from medvqa.report.published import NOT_STATED, ROWS, differences, row_of
from tests.unit.config.test_compose import composed

EXPERIMENTS = {f"seed_model_{number}": row for number, row in enumerate(ROWS, start=1)}


def resolved(*overrides):
    return OmegaConf.to_container(composed(*overrides), resolve=True, enum_to_str=True)


@pytest.mark.parametrize(("name", "row"), EXPERIMENTS.items(), ids=EXPERIMENTS)
def test_a_seed_experiment_differs_from_its_row_in_nothing_that_was_stated(name, row):
    config = resolved(f"experiment={name}")
    assert row_of(config) is row
    parts = config["data"]["parts"].values()
    num_train = sum(part["quota"] for part in parts) if parts else config["data"]["limit"]
    assert differences(row, config, num_train=num_train, num_test=451) == []
    assert config["contamination"]["action"] == "report"
    (evaluation,) = config["data"]["evaluation"].values()
    assert (evaluation["name"], evaluation["split"]) == ("vqa_rad", "test")
    assert config["prompt"]["text"].endswith("Question: {question}")
    assert config["evaluation"]["protocols"] == ["seed"]
    assert "decoding" in NOT_STATED


def test_each_difference_is_named_with_both_values():
    config = resolved("experiment=seed_model_1", "training.max_steps=60", "lora.r=8")
    settings = differences(ROWS[0], config, num_train=12_149, num_test=2_248)
    assert settings == [
        "test questions: 451, here 2248",
        "optimiser steps: 40, here 60",
        "LoRA rank and alpha: (16, 32.0), here (8, 32.0)",
    ]


def test_another_base_has_no_published_row():
    assert row_of(resolved()) is None


def test_the_arms_of_the_ordering_study_share_everything_but_seed_and_order():
    config = composed("experiment=ordering_study", hydra=True)
    assert set(config.hydra.sweeper.params) == {"seed", "curriculum"}
    arms = str(config.hydra.sweeper.params.curriculum).split(",")
    cells = []
    for arm in arms:
        values = resolved("experiment=ordering_study", f"curriculum={arm}")
        values.pop("curriculum")
        cells.append(values)
    assert all(cell == cells[0] for cell in cells)
    assert cells[0]["data"]["split"] == "train_disjoint"
    assert cells[0]["contamination"]["action"] == "refuse"
