"""The config group `contamination`: the gate before training."""

from dataclasses import dataclass
from enum import Enum

from medvqa.config.bounds import bounded


class Contamination(Enum):
    """What happens when evaluation pictures or questions are found in the training pool."""

    refuse = "refuse"
    report = "report"
    drop = "drop"


@dataclass(kw_only=True)
class ContaminationConfig:
    """The gate before training; see docs/contamination.md.

    Attributes:
        action: `refuse` above the bounds, `report` only, or `drop` the training rows concerned.
        max_image_overlap: Share of an evaluation set's pictures that may occur in training.
        max_item_overlap: Share of an evaluation set's questions that may occur in training with
            the same picture.
        max_distance: Bits of 256 in which two perceptual hashes may differ and still be one
            picture; docs/contamination.md has the table that the default was chosen from.
    """

    action: Contamination = Contamination.refuse
    max_image_overlap: float = bounded("[0, 1]", 0.0)
    max_item_overlap: float = bounded("[0, 1]", 0.0)
    max_distance: int = bounded("[0, 31]", 24)
