"""The training loop: a plan's examples in order, answer-only loss, exact continuation.

The loss of a step is the sum over the answer tokens of its whole effective batch divided by their
number, so 8 x 1, 4 x 2 and 2 x 4 are the same step (transformers issue 34191 tells what goes wrong
otherwise). Shapes: see `medvqa.collate`.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvqa.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from medvqa.collate import Encoder, Sample
from medvqa.config import Optimizer, OptimizerPolicy, TrainingConfig
from medvqa.curriculum import Plan, PlannedStage, learning_rate_factor, order_sha256
from medvqa.example import Example
from medvqa.model import LoadedModel, adapter_state, load_adapter_state
from medvqa.progress import track
from medvqa.record import JsonLines, read_lines

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

StepCallback = Callable[[Mapping[str, Any]], None]
StageCallback = Callable[[PlannedStage, int], None]


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What the run record keeps of the training.

    Attributes:
        final_loss: Loss of the last step; `average_loss` is the mean over all steps.
        consumed_sha256: Hash of the ids in the order in which the model saw them.
        resumed_from_step: 0 if the run was not interrupted.
    """

    num_steps: int
    final_loss: float
    average_loss: float
    optimizer: str
    consumed_sha256: str
    resumed_from_step: int


def build_optimizer(loaded: LoadedModel, config: TrainingConfig) -> "tuple[Any, str]":
    """Return the optimiser over the adapter, and the name of the one really used."""
    import torch

    parameters = [p for _, p in loaded.trainable]
    options: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    on_gpu = loaded.device.type == "cuda"
    if config.optimizer is Optimizer.adamw_8bit and on_gpu:
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            log.warning("bitsandbytes is not installed: AdamW in 32 bits instead of adamw_8bit")
        else:
            return AdamW8bit(parameters, **options), "adamw_8bit (bitsandbytes)"
    elif config.optimizer is Optimizer.adamw_8bit:
        log.warning("adamw_8bit needs a GPU: AdamW in 32 bits instead")
    return torch.optim.AdamW(parameters, fused=on_gpu, **options), "adamw (torch)"


class Trainer:
    """One run's optimisation; `train` may be called on a half-done run directory."""

    def __init__(
        self,
        loaded: LoadedModel,
        encoder: Encoder,
        config: TrainingConfig,
        *,
        directory: Path,
        seed: int,
    ) -> None:
        self.loaded = loaded
        self.encoder = encoder
        self.config = config
        self.directory = directory
        self.seed = seed
        self.optimizer, self.optimizer_name = build_optimizer(loaded, config)

    def train(
        self,
        plan: Plan,
        examples: Mapping[str, Example],
        *,
        on_step: StepCallback,
        on_stage_end: StageCallback,
    ) -> TrainingResult:
        """Train on the plan and leave a line a step in metrics.jsonl and order.jsonl."""
        first_step = self._resume(plan)
        metrics = JsonLines(self.directory / "metrics.jsonl", keep_up_to_step=first_step)
        order = JsonLines(self.directory / "order.jsonl", keep_up_to_step=first_step)
        stage_ends = {stage.first_step + stage.num_steps: stage for stage in plan.stages}
        with metrics, order:
            if first_step in stage_ends:  # killed between a stage's end and its evaluation
                on_stage_end(stage_ends[first_step], first_step)
            for step in track(range(first_step, plan.num_steps), description="training"):
                stage = plan.stage_at(step)
                if step == stage.first_step > 0 and stage.optimizer is OptimizerPolicy.reset:
                    self.optimizer, _ = build_optimizer(self.loaded, self.config)
                batch_size = self.config.micro_batch_size * self.config.accumulation_steps
                ids = plan.order[step * batch_size : (step + 1) * batch_size]
                row = self._step(plan, step, [examples[i] for i in ids])
                metrics.write({**row, "stage": stage.name})
                order.write({"step": step + 1, "stage": stage.name, "ids": list(ids)})
                on_step({**row, "stage": stage.name})
                done = step + 1
                if done % self.config.checkpoint_every == 0 or done in stage_ends:
                    self._save(plan, done)
                if done in stage_ends:
                    on_stage_end(stage_ends[done], done)
        return self._result(plan, first_step)

    def _step(self, plan: Plan, step: int, examples: Sequence[Example]) -> dict[str, Any]:
        import torch

        started = time.perf_counter()
        samples = [self.encoder.encode(example) for example in examples]
        num_answer_tokens = sum(len(sample.answer_ids) for sample in samples)
        factor = learning_rate_factor(
            plan, step, warmup_steps=self.config.warmup_steps, schedule=self.config.schedule
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * factor
        # Dropout depends on the step alone, so a continued run draws what the whole one drew.
        torch.manual_seed(_step_seed(self.seed, step))
        self.loaded.use_for(training=True)
        loss = torch.zeros((), device=self.loaded.device)
        size = self.config.micro_batch_size
        for start in range(0, len(samples), size):
            loss += self._backward(samples[start : start + size], num_answer_tokens)
        parameters = [p for _, p in self.loaded.trainable]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {
            "step": step + 1,
            "loss": float(loss),
            "learning_rate": self.config.learning_rate * factor,
            "grad_norm": float(norm),
            "num_answer_tokens": num_answer_tokens,
            "num_tokens": sum(sample.num_tokens for sample in samples),
            "num_examples": (step + 1) * len(samples),
            "seconds": time.perf_counter() - started,
        }

    def _backward(self, samples: Sequence[Sample], num_answer_tokens: int) -> "torch.Tensor":
        batch = self.encoder.training_batch(samples)
        batch = {name: tensor.to(self.loaded.device) for name, tensor in batch.items()}
        with self.loaded.autocast():
            loss = self.loaded.model(**batch, num_items_in_batch=num_answer_tokens).loss
        loss.backward()
        detached: torch.Tensor = loss.detach()
        return detached

    def _save(self, plan: Plan, step: int) -> None:
        state = Checkpoint(step, adapter_state(self.loaded), self.optimizer.state_dict())
        save_checkpoint(state, self.directory / "checkpoints", order_sha256=plan.sha256)

    def _resume(self, plan: Plan) -> int:
        saved = load_checkpoint(self.directory / "checkpoints", order_sha256=plan.sha256)
        if saved is None:
            return 0
        load_adapter_state(self.loaded, saved.adapter)
        self.optimizer.load_state_dict(saved.optimizer)
        log.info("continuing from step %d of %d", saved.step, plan.num_steps)
        return saved.step

    def _result(self, plan: Plan, first_step: int) -> TrainingResult:
        losses = [float(row["loss"]) for row in read_lines(self.directory / "metrics.jsonl")]
        consumed = [i for row in read_lines(self.directory / "order.jsonl") for i in row["ids"]]
        digest = order_sha256(consumed)
        assert digest == plan.sha256, "the model was fed another order than planned"
        return TrainingResult(
            num_steps=plan.num_steps,
            final_loss=losses[-1],
            average_loss=sum(losses) / len(losses),
            optimizer=self.optimizer_name,
            consumed_sha256=digest,
            resumed_from_step=first_step,
        )


def _step_seed(seed: int, step: int) -> int:
    digest = hashlib.sha256(f"{seed}:{step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
