"""The training loop: a plan's examples in order, answer-only loss, exact continuation.

The loss of a step is the sum over the answer tokens of its whole effective batch, divided by their
number. So 8 x 1, 4 x 2, 2 x 4 and 8 shared by several ranks are the same step. Transformers issue
34191 tells what goes wrong otherwise. Shapes: see `medvqa.models.encode`.
"""

import logging
import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from medvqa.config.errors import UserError
from medvqa.config.evaluation import Decoding
from medvqa.config.training import TrainingConfig
from medvqa.data.example import Example
from medvqa.data.plan import Plan
from medvqa.data.prefetch import ahead
from medvqa.fast.choice import choose_path, make_engine
from medvqa.models.encode import Encoder, encode_alone
from medvqa.models.loaded import LoadedModel
from medvqa.models.sample import Sample
from medvqa.tracking.progress import track
from medvqa.training.checkpoint import Checkpoint, CheckpointWriter, recorded_checkpoint
from medvqa.training.clock import Arriving, GpuTimestamp
from medvqa.training.optimizer import AdapterOptimizer
from medvqa.training.ranks import ALONE, Ranks
from medvqa.training.schedule import learning_rate_of
from medvqa.training.step_form import free_bytes, planned_micro_batch, smaller_micro_batch
from medvqa.training.step_log import (
    StageCallback,
    Step,
    StepCallback,
    StepLog,
    TrainingResult,
    diverged,
    training_result,
)

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

ENCODING_THREADS = 4


@dataclass
class Trainer:
    """One run's optimisation; `train` may be called on a half-done run directory."""

    loaded: LoadedModel
    encoder: Encoder
    config: TrainingConfig
    _: KW_ONLY
    directory: Path
    seed: int
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        """Choose the engine, and how many samples it computes at once."""
        loaded, config = self.loaded, self.config
        self.checkpoints = CheckpointWriter(self.directory / "checkpoints")
        self.engine = choose_path(loaded, config.engine, Decoding.auto).engine
        self.engine_name = self.engine.value  # as run.json records it
        self._on_gpu = loaded.device.type == "cuda"
        self._engine = make_engine(self.engine, loaded, self.encoder)
        in_compute_type = self._on_gpu and self._engine.adapts_in_compute_type
        self.optimizer = AdapterOptimizer(loaded, config, in_compute_type=in_compute_type)
        share = math.ceil(config.batch_size / self.ranks.size)
        self._plans_form = self._on_gpu and config.fit_micro_batch and not loaded.is_sharded
        self._largest_size = share if self._plans_form else min(config.micro_batch_size, share)
        self._micro_batch_size = self._largest_size

    def train(
        self,
        plan: Plan,
        examples: Mapping[str, Example],
        *,
        on_step: StepCallback,
        on_stage_end: StageCallback,
        wait: bool = True,
    ) -> TrainingResult:
        """Train on the plan and leave one line per step in metrics.jsonl and order.jsonl.

        Args:
            plan: Whose order is trained on.
            examples: By id.
            on_step: Called with each line of metrics.jsonl.
            on_stage_end: Called with the stage and the number of steps done so far.
            wait: For the last checkpoint to be on the disk; otherwise `checkpoints.settle` does.

        Raises:
            UserError: If one sample does not fit into memory, a checkpoint not onto the disk, or
                if what lies in the directory belongs to another run.
        """
        first_step = self._resume(plan)
        numbers = range(first_step, plan.num_steps)
        size = self.config.batch_size
        encoded = self._encoded([plan.step_ids(number, size) for number in numbers], examples)
        step_log = StepLog(self.directory, first_step, on_step, is_behind=self._on_gpu)
        with self.checkpoints if wait else nullcontext(), step_log, closing(encoded):
            if first_step in plan.stage_ends:  # killed between a stage's end and its evaluation
                on_stage_end(plan.stage_ends[first_step], first_step)
            for number in track(numbers, description="training"):
                step_log.add(self._step(plan, number, next(encoded)))
                self.checkpoints.look()
                done = number + 1
                if done % self.config.checkpoint_every == 0 or done in plan.stage_ends:
                    self._save(plan, done, step_log)
                if done in plan.stage_ends:
                    on_stage_end(plan.stage_ends[done], done)
        return self._result(plan, first_step)

    def _encoded(
        self, steps: Sequence[Sequence[str]], examples: Mapping[str, Example]
    ) -> Generator[list[Sample]]:
        """Return this rank's samples of each step; on a GPU, threads prepare the next ones."""

        def encode(ids: Sequence[str]) -> list[Sample]:
            batch = [examples[name] for name in ids]
            own = self.ranks.share(batch, [" ".join(example.image_ids) for example in batch])
            return self.encoder.encode_batch(own, training=True, size=self._micro_batch_size)

        num_threads = ENCODING_THREADS if self._on_gpu else 0
        return ahead(encode, steps, num_threads=num_threads, initializer=encode_alone())

    def _step(self, plan: Plan, number: int, samples: Sequence[Sample]) -> "Step":
        ids, stage = plan.step_ids(number, self.config.batch_size), plan.stage_at(number)
        if number == stage.first_step and stage.resets_optimizer:
            self.optimizer.reset()
        begun = GpuTimestamp(self.loaded.device)
        num_tokens = sum(sample.num_tokens for sample in samples)
        counts = sum(len(sample.answer_ids) for sample in samples), num_tokens
        totals = self.ranks.total(counts, self.loaded.device)
        learning_rate = learning_rate_of(self.config, plan)(number)
        self.loaded.use_for(training=True)
        # Dropout depends on step and rank alone, so a continued run draws what the whole one drew.
        seed = self.ranks.step_seed(self.seed, number)
        if self._plans_form:
            lengths, room = [s.num_tokens for s in samples], free_bytes(self.loaded)
            self._micro_batch_size = planned_micro_batch(self._engine, lengths, room)
            self._plans_form = False
        loss = self._gradients(samples, totals[0], seed)
        while loss is None:
            self._shrink()
            loss = self._gradients(samples, totals[0], seed)
        num_ranks = self.ranks.sum_in_place([loss, *self.optimizer.whole_gradients()])
        norm = self.optimizer.step(learning_rate, max_grad_norm=self.config.max_grad_norm)
        return Step(
            number=number + 1,
            stage=stage.name,
            ids=ids,
            numbers=Arriving([loss, norm, *(totals if num_ranks else ()), *num_ranks]),
            num_ranks=self.ranks.size,
            learning_rate=learning_rate,
            counts=counts,
            num_examples=(number + 1) * len(ids),
            begun=begun,
        )

    def _gradients(
        self, samples: Sequence[Sample], num_answer_tokens: "int | torch.Tensor", seed: int
    ) -> "torch.Tensor | None":
        """Leave this rank's gradients; return its part of the loss, or None without memory."""
        import torch

        torch.manual_seed(seed)
        loss = torch.zeros((), device=self.loaded.device)
        try:
            for start in range(0, len(samples), self._micro_batch_size):
                micro_batch = samples[start : start + self._micro_batch_size]
                loss += self._backward(micro_batch, num_answer_tokens)
        except torch.OutOfMemoryError as error:
            if self.loaded.is_sharded:  # the others wait in a pass that this rank has left
                raise UserError(
                    f"{self._micro_batch_size} samples at once do not fit beside this GPU's part "
                    "of the weights; use a smaller training.micro_batch_size"
                ) from error
            return None
        return loss

    def _shrink(self) -> None:
        """Need less memory after running out of it.

        Raises:
            UserError: If not even one sample fits.
        """
        import torch

        self.optimizer.forget_gradients()
        self._engine.release_memory()
        torch.cuda.empty_cache()
        self._micro_batch_size = smaller_micro_batch(
            self._engine, self.loaded.features, self._micro_batch_size, self._largest_size
        )

    def _backward(
        self, samples: Sequence[Sample], num_answer_tokens: "int | torch.Tensor"
    ) -> "torch.Tensor":
        loss = self._engine.loss(samples, num_answer_tokens)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.collect()
        return loss.detach()

    def _save(self, plan: Plan, step: int, step_log: StepLog) -> None:
        step_log.sync()
        if self.ranks.rank == 0:
            state = Checkpoint(step, self.optimizer.weights(), self.optimizer.state_dict())
            self.checkpoints.start(state, self._run(plan))

    def _run(self, plan: Plan) -> dict[str, str]:
        return {"order_sha256": plan.sha256, "engine": self.engine.value}

    def _resume(self, plan: Plan) -> int:
        saved = self.ranks.first(recorded_checkpoint, self.directory, self._run(plan), plan.order)
        if saved is None:
            return 0
        self.optimizer.load(saved.adapter, saved.optimizer)
        log.info("continuing from step %d of %d", saved.step, plan.num_steps)
        return saved.step

    def _result(self, plan: Plan, first_step: int) -> TrainingResult:
        self._micro_batch_size = min(self.ranks.gather(self._micro_batch_size))
        result = self.ranks.first(
            partial(training_result, self.directory, plan),
            optimizer=self.optimizer.name,
            engine=self.engine_name,
            micro_batch_size=self._micro_batch_size,
            resumed_from_step=first_step,
        )
        if not self.optimizer.is_finite():
            raise diverged("a weight is not finite", plan.num_steps, self.config.learning_rate)
        return result
