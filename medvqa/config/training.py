"""The config group `training`: batch, steps, learning rate, optimizer and engine."""

from dataclasses import dataclass
from enum import Enum

from medvqa.config.bounds import bounded, check


class Optimizer(Enum):
    """`adamw_8bit` is bitsandbytes' and needs CUDA; elsewhere plain AdamW serves, logged."""

    adamw_8bit = "adamw_8bit"
    adamw = "adamw"


class Engine(Enum):
    """How a step is computed; see docs/engine.md.

    `auto` is `fused` on a GPU where the fused engine supports the model, else `plain`.
    """

    auto = "auto"
    plain = "plain"
    fused = "fused"


class TrainerName(Enum):
    """Who takes the optimiser steps: this package's loop, or TRL's SFTTrainer."""

    medvqa = "medvqa"
    trl = "trl"


class LossOn(Enum):
    """Which tokens the loss covers: the answer, or prompt and answer without image tokens."""

    answer = "answer"
    text = "text"


class Sharding(Enum):
    """Whether each GPU of a run holds the whole base, or its part by PyTorch's FSDP2."""

    none = "none"
    fsdp2 = "fsdp2"


class Schedule(Enum):
    """Shape of the learning rate after the warm-up."""

    linear = "linear"
    cosine = "cosine"
    constant = "constant"


@dataclass(kw_only=True)
class TrainingConfig:
    """Optimisation. Effective batch = micro_batch_size x accumulation_steps, on all GPUs together.

    Attributes:
        gpus: Processes that share each effective batch, one GPU each; see
            docs/several_gpus.md. With model.device=cpu they share the processor.
        max_steps: Optimiser steps that the stages' shares divide.
        micro_batch_size: Examples per forward and backward pass.
        accumulation_steps: Passes per optimiser step.
        learning_rate: Peak, at the end of the warm-up.
        warmup_steps: Steps of the warm-up; derived from the plan if null, see
            `medvqa.training.schedule`.
        weight_decay: Of AdamW, decoupled from the gradient.
        max_grad_norm: Gradients with a larger norm are scaled down to this one.
        trainer: Who takes the optimiser steps: this package's loop, or TRL's SFTTrainer, which
            takes micro_batch_size as it is and one GPU.
        loss_on: Tokens that the loss covers: the answer's, or also the prompt's without image
            tokens; `text` needs `trainer=trl`.
        checkpoint_every: Steps between checkpoints; a killed run goes on from the last one.
        gradient_checkpointing: Recompute activations; slower, for when memory is short.
        fit_micro_batch: On a GPU, compute as much of the effective batch at once as its memory
            holds, whatever micro_batch_size says; the step stays the same.
        sharding: `fsdp2` spreads the frozen base over the GPUs, for one that no GPU holds.
            transformers' own modules compute, with micro_batch_size as it is.
        rank_timeout_s: Seconds that a GPU of several waits for another one within a step; outside
            a step, 24 times as long. Then the run fails, as one process hangs.
    """

    max_steps: int = bounded("[0, 1000000]", 40)
    micro_batch_size: int = bounded("[1, 65536]", 2)
    accumulation_steps: int = bounded("[1, 65536]", 4)
    learning_rate: float = 2e-4
    warmup_steps: int | None = bounded("[0, 1000000]", None)
    schedule: Schedule = Schedule.linear
    optimizer: Optimizer = Optimizer.adamw_8bit
    weight_decay: float = bounded("[0, 1000]", 0.01)
    max_grad_norm: float = 1.0
    checkpoint_every: int = 50
    gradient_checkpointing: bool = False
    engine: Engine = Engine.auto
    trainer: TrainerName = TrainerName.medvqa
    loss_on: LossOn = LossOn.answer
    fit_micro_batch: bool = True
    gpus: int = bounded("[1, 1024]", 1)
    sharding: Sharding = Sharding.none
    rank_timeout_s: int = bounded("[1, 86400]", 600)

    @property
    def batch_size(self) -> int:
        """Effective batch: examples per optimiser step."""
        return self.micro_batch_size * self.accumulation_steps

    def __post_init__(self) -> None:
        """Check that every process has an example, and what goes with which trainer."""
        check(
            self.max_steps > 0,
            "training.max_steps=0 would train nothing; `medvqa evaluate model=... data=...` "
            "evaluates a base or a saved adapter without training",
        )
        check(
            self.gpus <= self.batch_size,
            f"training.gpus={self.gpus} is above the effective batch of {self.batch_size} examples "
            "(micro_batch_size x accumulation_steps): some would have nothing to do",
        )
        if self.sharding is not Sharding.none:
            check(
                self.gpus > 1 and self.batch_size % self.gpus == 0,
                f"training.sharding={self.sharding.value} divides a step among several GPUs in "
                f"equal parts: training.gpus={self.gpus} must be above 1 and divide "
                f"{self.batch_size} (micro_batch_size x accumulation_steps)",
            )
            check(
                self.engine is not Engine.fused,
                "training.engine=fused needs whole weights; use training.engine=auto or "
                "training.sharding=none",
            )
        through_trl = self.trainer is TrainerName.trl
        check(
            through_trl or self.loss_on is LossOn.answer,
            "training.loss_on=text is computed by TRL; use training.trainer=trl with it",
        )
        check(
            not (through_trl and self.engine is Engine.fused),
            "training.engine=fused replaces TRL's steps; use training.engine=auto or "
            "training.trainer=medvqa",
        )
        check(
            not (through_trl and self.gpus > 1),
            f"training.trainer=trl trains on one GPU, but training.gpus={self.gpus}",
        )
