"""metrics.jsonl and order.jsonl: one line per optimiser step, and the result of all steps."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from medvqa.config.errors import DivergenceError, RankError, UserError
from medvqa.data.plan import Plan, PlannedStage, order_sha256
from medvqa.tracking.record import JsonLines, read_lines
from medvqa.training.clock import Arriving, GpuTimestamp

StepCallback = Callable[[Mapping[str, Any]], None]
StageCallback = Callable[[PlannedStage, int], None]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimiser step whose numbers may still be on their way from the GPU.

    Attributes:
        numbers: Loss, gradient norm and, of several ranks, the counts and how many ranks are in
            the sums; their mark is the step's end.
        counts: Answer tokens and all tokens of this rank.
        begun: Before its first operation.
    """

    number: int
    stage: str
    ids: Sequence[str]
    numbers: Arriving
    learning_rate: float
    counts: Sequence[int]
    num_examples: int
    begun: GpuTimestamp
    num_ranks: int = 1

    def row(self, *, since: GpuTimestamp | None) -> dict[str, Any]:
        """Wait for the numbers and return the line of metrics.jsonl.

        Args:
            since: The end of the step before; what lay between belongs to this step. Without
                it, the step counts from its own beginning.

        Raises:
            RankError: If a rank's part is missing; no checkpoint may follow.
        """
        loss, grad_norm, *totals = self.numbers.read()
        if totals and round(totals.pop()) != self.num_ranks:
            raise RankError(f"step {self.number} lacks the part of a rank, which hangs")
        num_answer_tokens, num_tokens = map(int, totals or self.counts)
        return {
            "step": self.number,
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": self.learning_rate,
            "num_answer_tokens": num_answer_tokens,
            "num_tokens": num_tokens,
            "num_examples": self.num_examples,
            "stage": self.stage,
            "seconds": self.numbers.mark.seconds_since(since or self.begun),
        }


class StepLog:
    """Writes each step to metrics.jsonl and order.jsonl.

    On a GPU, which is behind with its work, a step is written when the next one has been launched.
    """

    def __init__(
        self, directory: Path, first_step: int, on_step: StepCallback, *, is_behind: bool = False
    ) -> None:
        self._is_behind = is_behind
        self._metrics = JsonLines(directory / "metrics.jsonl", keep_up_to_step=first_step)
        self._order = JsonLines(directory / "order.jsonl", keep_up_to_step=first_step)
        self._on_step = on_step
        self._waiting: Step | None = None
        self._last_end: GpuTimestamp | None = None

    def add(self, step: Step) -> None:
        """Take a step; write the one before, or this one where there is nothing to wait for."""
        self.flush()
        self._waiting = step
        if not self._is_behind:
            self.flush()

    def flush(self) -> None:
        """Write what is left; see `write`."""
        step, self._waiting = self._waiting, None
        if step is not None:
            row = step.row(since=self._last_end)
            self._last_end = step.numbers.mark
            self.write(row, step.ids)

    def write(self, row: Mapping[str, Any], ids: Sequence[str]) -> None:
        """Write a step's line of metrics.jsonl, and the ids that it consumed.

        Raises:
            DivergenceError: If its loss or gradient norm is not finite.
        """
        self._metrics.write(row)
        self._order.write({"step": row["step"], "stage": row["stage"], "ids": list(ids)})
        self._on_step(row)
        for name in ("loss", "grad_norm"):
            if not math.isfinite(row[name]):
                raise diverged(f"{name}={row[name]}", row["step"], row["learning_rate"])

    def sync(self) -> None:
        """Bring all steps to the disk, before the checkpoint that continues from them."""
        self.flush()
        self._last_end = None  # what comes between is no step
        self._metrics.sync()
        self._order.sync()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        self._metrics.close()
        self._order.close()


def diverged(value: str, step: int, learning_rate: float) -> DivergenceError:
    """Return the error of a run whose numbers are no longer finite."""
    return DivergenceError(
        f"the training diverged: {value} in step {step} at learning rate {learning_rate:g}; lower "
        "training.learning_rate or training.max_grad_norm, or give a longer training.warmup_steps"
    )


def recorded_steps(directory: Path, order: Sequence[str]) -> int:
    """Return up to which step both logs go; a crash of the machine may have cut them.

    Args:
        directory: Of the run.
        order: The planned ids, with which the recorded ones must begin.

    Raises:
        UserError: If a log lacks a step before its last one, or has other ids.
    """
    rows = read_steps(directory / "order.jsonl")
    consumed = [name for row in rows for name in row["ids"]]
    if consumed != list(order[: len(consumed)]):
        raise UserError(
            f"{directory / 'order.jsonl'} holds another order than the plan; say fresh=true to "
            "start over"
        )
    return min(len(rows), len(read_steps(directory / "metrics.jsonl")))


def read_steps(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a log, one for each step from the first on.

    Raises:
        UserError: If a step is missing, stands twice, or has neither loss nor ids.
    """
    rows = read_lines(path)
    for number, row in enumerate(rows, start=1):
        if row.get("step") != number or not row.keys() & {"loss", "ids"}:
            raise UserError(
                f"{path}, line {number} is not the record of step {number}: somebody has edited "
                "the file; say fresh=true to start over"
            )
    return rows


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
    losses = [float(row["loss"]) for row in read_steps(directory / "metrics.jsonl")]
    consumed = [i for row in read_steps(directory / "order.jsonl") for i in row["ids"]]
    digest = order_sha256(consumed)
    assert digest == plan.sha256, "the model was fed another order than planned"
    return TrainingResult(
        num_steps=plan.num_steps,
        final_loss=losses[-1],
        average_loss=sum(losses) / len(losses),
        consumed_sha256=digest,
        **fields,
    )
