"""The evaluations of one run in the order in which they happen, each timed, recorded, tracked."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from medvqa.data.example import Example
from medvqa.data.plan import Plan, PlannedStage
from medvqa.evaluation.answering import Answerer
from medvqa.evaluation.evaluate import Evaluator
from medvqa.evaluation.phase_scores import Evaluation
from medvqa.evaluation.probing import ask_probes
from medvqa.models.loaded import LoadedModel
from medvqa.tracking.wandb_mirror import Records


@dataclass(frozen=True)
class Phases:
    """Evaluates a model before, between and after the stages of its training.

    Attributes:
        evaluator: Scores and writes the answers.
        answer: Gives them.
        records: run.json and its mirror.
        loaded: The model that answers, unless a server has it.
    """

    evaluator: Evaluator
    answer: Answerer
    records: Records
    loaded: LoadedModel | None = None

    @property
    def _device(self) -> str:
        return self.loaded.device.type if self.loaded else "cpu"

    def before_training(self, pool: Sequence[Example]) -> None:
        """Evaluate the baselines: the pool's majority answers and, if configured, zero-shot."""
        answers = [(example.answer_type, example.answers[0]) for example in pool]
        self.evaluator.majority(answers, device=self._device)
        if self.evaluator.config.zero_shot and self.loaded:
            with self.loaded.adapter_disabled():
                self._evaluate("zero_shot", 0)

    def after_stage(self, plan: Plan, stage: PlannedStage, step: int) -> None:
        """Evaluate where one stage ends and the next begins, if configured."""
        if step < plan.num_steps and self.evaluator.config.after_each_stage:
            self._evaluate(f"after_{stage.name}", step)

    def after_training(self, step: int) -> list[Evaluation]:
        """Return the final evaluations; evaluate without the pictures, too, if configured."""
        keeper, tracker = self.records
        final = self._evaluate("final", step)
        if self.evaluator.config.blind:
            self._evaluate("blind", step, show_images=False)
            self.evaluator.ranks.first(self.evaluator.join_blind)
        with keeper.phase("evaluate"):
            for result in ask_probes(self.evaluator, self.answer, step):
                tracker.log(result.flat(), step=step)
        if self.loaded:
            peaks = self.evaluator.ranks.gather(self.loaded.peak_gpu_bytes() or 0)
            keeper.update(peak_gpu_bytes=max(peaks) or None)
        return final

    def _evaluate(self, phase: str, step: int, *, show_images: bool = True) -> list[Evaluation]:
        keeper, tracker = self.records
        started = time.monotonic()
        with keeper.phase("evaluate"):
            results = self.evaluator.phase(
                phase, step, self.answer, device=self._device, show_images=show_images
            )
        # A phase that an earlier start has evaluated is only read here.
        seconds: dict[str, float] = keeper.values["evaluation_seconds"]
        seconds.setdefault(phase, round(time.monotonic() - started, 3))
        for result in results:
            tracker.log(result.flat(), step=step)
        keeper.update()
        return results
