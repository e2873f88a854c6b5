"""The four published rows, and how a run's protocol differs from theirs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medvqa.training.schedule import derived_warmup

SOURCE = "https://github.com/MdSufiyan005/MEDICO-AGENT (commit 8ba3d27), Finetuning"
# What no setting of a run can match.
NOT_STATED = (
    "which rows of the pool were drawn and in what order. The decoding follows the model's "
    "generation config. The loss covers the prompt too, unless the trainer was configured otherwise"
)
LORA = (16, 32.0)
LEARNING_RATE, WARMUP_STEPS, BATCH_SIZE, SEED = 2e-4, 5, 8, 1200
DROPOUT, WEIGHT_DECAY, MAX_NEW_TOKENS, NUM_TEST = 0.05, 0.001, 200, 451
TOLERANCE = (0.01, "absolute")


@dataclass(frozen=True)
class PublishedRow:
    """One published fine-tuning; all four were loaded in 4 bits.

    Attributes:
        base: As the source names it; `-Instruct` is an assumption for the Qwen2-VL rows.
        num_train: Size of the pool, of which `max_steps` x 8 examples were seen.
    """

    base: str
    num_train: int
    max_steps: int
    exact_match: float
    f1: float
    bertscore_f1: float


ROWS = (
    PublishedRow("Qwen3-VL-8B-Instruct", 12_149, 40, 0.4590, 0.4929, 0.9479),
    PublishedRow("Qwen3-VL-2B-Instruct", 12_149, 40, 0.3503, 0.3798, 0.9436),
    PublishedRow("Qwen2-VL-7B-Instruct", 6_666, 50, 0.3769, 0.4309, 0.9257),
    PublishedRow("Qwen2-VL-2B-Instruct-bnb-4bit", 6_666, 60, 0.2084, 0.2793, 0.8934),
)


def row_of(config: Mapping[str, Any]) -> PublishedRow | None:
    """Return the row of the run's base model, or None for another base."""
    name = str(config["model"]["name"]).rpartition("/")[2]
    return next((row for row in ROWS if row.base == name), None)


def differences(
    row: PublishedRow, config: Mapping[str, Any], *, num_train: int, num_test: int
) -> list[str]:
    """Name each setting in which a run is known to differ from a row, "theirs, here ours".

    An empty list does not mean the same protocol: see `NOT_STATED`.

    Args:
        row: The published one.
        config: The run's resolved config, as run.json keeps it.
        num_train: Rows in the run's pool.
        num_test: Questions of its first evaluation set.
    """
    training, lora, scoring = config["training"], config["lora"], config["evaluation"]
    prompt = config.get("prompt", {})
    tolerance = (scoring["numeric_tolerance"], scoring.get("numeric_tolerance_kind", "relative"))
    warmup, num_steps = training["warmup_steps"], training["max_steps"]
    pairs: list[tuple[str, Any, Any]] = [
        ("base", row.base, str(config["model"]["name"]).rpartition("/")[2]),
        ("4-bit weights", True, config["model"]["load_in_4bit"]),
        ("training pool, rows", row.num_train, num_train),
        ("test questions", NUM_TEST, num_test),
        ("optimiser steps", row.max_steps, training["max_steps"]),
        ("examples per step", BATCH_SIZE,
         training["micro_batch_size"] * training["accumulation_steps"]),
        ("learning rate", LEARNING_RATE, training["learning_rate"]),
        ("warm-up steps", WARMUP_STEPS,
         derived_warmup(num_steps, num_steps) if warmup is None else warmup),
        ("optimiser", "adamw_8bit", training["optimizer"]),
        ("LoRA rank and alpha", LORA, (lora["r"], lora["alpha"])),
        ("LoRA dropout", DROPOUT, lora["dropout"]),
        ("vision layers trained", False, lora["vision_layers"]),
        ("weight decay", WEIGHT_DECAY, training["weight_decay"]),
        ("seed", SEED, config["seed"]),
        ("images in the prompt", "last", prompt.get("images", "first")),
        ("new tokens at most", MAX_NEW_TOKENS, scoring["max_new_tokens"]),
        ("numeric tolerance", TOLERANCE, tolerance),
    ]  # fmt: skip
    return [f"{what}: {theirs}, here {ours}" for what, theirs, ours in pairs if theirs != ours]
