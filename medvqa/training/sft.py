"""A planned order through TRL's SFTTrainer, the trainer of the published rows.

The library computes the steps and keeps its own checkpoints. The order of ids, the schedule over
stages and the records are those of `medvqa.training.loop`. Chosen by `training.trainer=trl`.
"""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from medvqa.config.training import Optimizer, TrainingConfig
from medvqa.data.example import Example
from medvqa.data.plan import Plan
from medvqa.models.encode import Encoder
from medvqa.models.loaded import LoadedModel
from medvqa.training.ranks import ALONE, Ranks
from medvqa.training.schedule import learning_rate_of
from medvqa.training.sft_batches import SftBatches
from medvqa.training.step_log import (
    StageCallback,
    StepCallback,
    StepLog,
    TrainingResult,
    training_result,
)


@dataclass
class SftTrainer:
    """Trains with TRL on one GPU; the same calls as `medvqa.training.loop.Trainer`."""

    loaded: LoadedModel
    encoder: Encoder
    config: TrainingConfig
    _: KW_ONLY
    directory: Path
    seed: int
    ranks: Ranks = ALONE
    engine_name: str = "trl"
    checkpoints: AbstractContextManager[None] = field(default_factory=nullcontext)  # TRL's own

    def __post_init__(self) -> None:
        """Prepare the batches."""
        self._batches = SftBatches(self.loaded, self.encoder, self.config.loss_on)

    def train(
        self,
        plan: Plan,
        examples: Mapping[str, Example],
        *,
        on_step: StepCallback,
        on_stage_end: StageCallback,
        wait: bool = True,
    ) -> TrainingResult:
        """Train on the plan; see `medvqa.training.loop.Trainer.train`."""
        from datasets import Dataset
        from transformers import PrinterCallback
        from transformers.trainer_utils import get_last_checkpoint

        place = self.directory / "checkpoints"
        last = get_last_checkpoint(str(place)) if place.is_dir() else None
        first_step = int(last.rpartition("-")[2]) if last else 0
        with StepLog(self.directory, first_step, on_step) as step_log:
            trainer = self._trainer(
                plan,
                Dataset.from_dict({"id": list(plan.order)}),
                lambda rows: self._batches.collate([examples[row["id"]] for row in rows]),
                self._callback(plan, step_log, first_step, on_stage_end),
            )
            trainer.remove_callback(PrinterCallback)  # the records hold what it prints
            trainer.train(resume_from_checkpoint=last)
        # Undo accelerate's wrapper: evaluation and export see the model as it was loaded.
        trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        return training_result(
            self.directory,
            plan,
            optimizer=str(trainer.args.optim.value),
            engine=self.engine_name,
            micro_batch_size=self.config.micro_batch_size,
            resumed_from_step=first_step,
        )

    def _trainer(self, plan: Plan, dataset: Any, collate: Any, callback: Any) -> Any:
        from torch.optim.lr_scheduler import LambdaLR
        from transformers import Trainer
        from trl import SFTTrainer

        on_gpu, rate = self.loaded.device.type == "cuda", learning_rate_of(self.config, plan)
        peak, last = self.config.learning_rate, plan.num_steps - 1

        class InPlannedOrder(SFTTrainer):  # type: ignore[misc]
            def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
                # It is asked once more when training has ended.
                self.lr_scheduler = LambdaLR(
                    optimizer or self.optimizer, lambda step: rate(min(step, last)) / peak
                )
                return self.lr_scheduler

            def compute_loss(self, *arguments: Any, **options: Any) -> Any:
                # TRL's own fused loss needs a GPU; the sum is the same.
                compute = SFTTrainer.compute_loss if on_gpu else Trainer.compute_loss
                return compute(self, *arguments, **options)

        return InPlannedOrder(
            model=self.loaded.model,
            processing_class=self.encoder.processor,
            data_collator=collate,
            train_dataset=dataset,
            callbacks=[callback],
            args=self._arguments(plan.num_steps),
        )

    def _arguments(self, num_steps: int) -> Any:
        from trl import SFTConfig

        config = self.config
        # The old name is all that transformers 5.17 has, and 5.24 warns of it.
        names = ("activation_checkpointing", "gradient_checkpointing")
        recomputes = next(name for name in names if hasattr(SFTConfig, name))
        in_8bit = self.loaded.device.type == "cuda" and config.optimizer is Optimizer.adamw_8bit
        return SFTConfig(
            output_dir=str(self.directory / "checkpoints"),
            per_device_train_batch_size=config.micro_batch_size,
            gradient_accumulation_steps=config.accumulation_steps,
            max_steps=num_steps,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            optim="adamw_8bit" if in_8bit else "adamw_torch",
            bf16=self.loaded.device.type == "cuda" and "bfloat16" in str(self.loaded.dtype),
            use_cpu=self.loaded.device.type != "cuda",
            seed=self.seed,
            train_sampling_strategy="sequential",
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_steps=config.checkpoint_every,
            save_total_limit=2,
            max_length=None,  # nothing is cut; too long a sample was refused before
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            report_to="none",
            disable_tqdm=True,
            **{recomputes: config.gradient_checkpointing},
        )

    def _callback(
        self,
        plan: Plan,
        step_log: StepLog,
        first_step: int,
        on_stage_end: StageCallback,
    ) -> Any:
        from transformers import TrainerCallback

        ends, begun, batch_size = plan.stage_ends, [0.0], self.config.batch_size

        def on_step_begin(args: Any, state: Any, control: Any, **options: Any) -> None:
            step, stage = state.global_step, plan.stage_at(state.global_step)
            if step == first_step and step in ends:  # killed before the stage's evaluation
                on_stage_end(ends[step], step)
            if step == stage.first_step and stage.resets_optimizer:
                options["optimizer"].state.clear()
            begun[0] = time.perf_counter()

        def on_step_end(args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_save |= state.global_step in ends

        def on_log(args: Any, state: Any, control: Any, **options: Any) -> None:
            step, values = state.global_step, options["logs"]
            if "grad_norm" not in values:  # the summary at the end
                return
            row = self._row(plan, step, values) | {"seconds": time.perf_counter() - begun[0]}
            # It raises where the run diverged, before the library saves a checkpoint.
            step_log.write(row, plan.step_ids(step - 1, batch_size))
            if step in ends:
                on_stage_end(ends[step], step)

        events = TrainerCallback()
        vars(events).update(on_step_begin=on_step_begin, on_step_end=on_step_end, on_log=on_log)
        return events

    def _row(self, plan: Plan, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        num_supervised, num_tokens = self._batches.counted(self.config.accumulation_steps)
        return {
            "step": step,
            "loss": float(values["loss"]),
            "grad_norm": float(values["grad_norm"]),
            "learning_rate": learning_rate_of(self.config, plan)(step - 1),
            "num_answer_tokens": num_supervised,
            "num_tokens": num_tokens,
            "num_examples": step * self.config.batch_size,
            "stage": plan.stage_at(step - 1).name,
        }
