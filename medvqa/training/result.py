"""What a training leaves for the run's record, whoever took the steps."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvqa.data.plan import Plan, order_sha256
from medvqa.tracking.record import read_lines


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What the run record keeps of the training.

    Attributes:
        final_loss: Loss of the last step; `average_loss` is the mean over all steps.
        consumed_sha256: Hash of the ids in the order in which the model saw them.
        engine: The one really used; `micro_batch_size` is what was computed at once in the end.
        resumed_from_step: 0 if the run was not interrupted.
    """

    num_steps: int
    final_loss: float
    average_loss: float
    optimizer: str
    engine: str
    micro_batch_size: int
    consumed_sha256: str
    resumed_from_step: int


def training_result(directory: Path, plan: Plan, **fields: Any) -> TrainingResult:
    """Return the result of a training whose logs are complete; `fields` are the trainer's own."""
    losses = [float(row["loss"]) for row in read_lines(directory / "metrics.jsonl")]
    consumed = [i for row in read_lines(directory / "order.jsonl") for i in row["ids"]]
    digest = order_sha256(consumed)
    assert digest == plan.sha256, "the model was fed another order than planned"
    return TrainingResult(
        num_steps=plan.num_steps,
        final_loss=losses[-1],
        average_loss=sum(losses) / len(losses),
        consumed_sha256=digest,
        **fields,
    )
