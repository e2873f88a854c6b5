"""The trainers by name; each has the same calls."""

from collections.abc import Callable, Mapping
from typing import Any

from medvqa.config.training import TrainerName
from medvqa.training.loop import Trainer
from medvqa.training.sft import SftTrainer

TRAINERS: Mapping[TrainerName, Callable[..., Any]] = {
    TrainerName.medvqa: Trainer,
    TrainerName.trl: SftTrainer,
}
