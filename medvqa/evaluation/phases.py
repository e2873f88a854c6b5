"""The evaluations of one run in the order in which they happen, each timed, recorded, tracked."""

import time
from collections.abc import Sequence

from medvqa.data.example import Example
from medvqa.data.plan import Plan, PlannedStage
from medvqa.evaluation.answering import Answerer
from medvqa.evaluation.evaluate import Evaluator
from medvqa.evaluation.phase_scores import Evaluation
from medvqa.evaluation.probing import ask_probes
from medvqa.models.loaded import LoadedModel
from medvqa.tracking.wandb_mirror import Records


class Phases:
    """Evaluates a model before, between and after the stages of its training.

    Args:
        evaluator: Scores and writes the answers.
        answer: Gives them.
        records: run.json and its mirror.
        loaded: The model that answers, unless a server has it.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        answer: Answerer,
        records: Records,
        loaded: LoadedModel | None = None,
    ) -> None:
        self._evaluator = evaluator
        self._config = evaluator.config
        self._answer = answer
        self._loaded = loaded
        self._device = loaded.device.type if loaded else "cpu"
        self._keeper, self._tracker = records

    def before_training(self, pool: Sequence[Example]) -> None:
        """Evaluate the baselines: the pool's majority answers and, if configured, zero-shot."""
        answers = [(example.answer_type, example.answers[0]) for example in pool]
        self._evaluator.majority(answers, device=self._device)
        if self._config.zero_shot and self._loaded:
            with self._loaded.adapter_disabled():
                self._evaluate("zero_shot", 0)

    def after_stage(self, plan: Plan, stage: PlannedStage, step: int) -> None:
        """Evaluate where one stage ends and the next begins, if configured."""
        if step < plan.num_steps and self._config.after_each_stage:
            self._evaluate(f"after_{stage.name}", step)

    def after_training(self, step: int) -> list[Evaluation]:
        """Return the final evaluations; evaluate without the pictures, too, if configured."""
        final = self._evaluate("final", step)
        if self._config.blind:
            self._evaluate("blind", step, show_images=False)
            self._evaluator.ranks.first(self._evaluator.join_blind)
        with self._keeper.phase("evaluate"):
            for result in ask_probes(self._evaluator, self._answer, step):
                self._tracker.log(result.flat(), step=step)
        if self._loaded:
            peaks = self._evaluator.ranks.gather(self._loaded.peak_gpu_bytes() or 0)
            self._keeper.update(peak_gpu_bytes=max(peaks) or None)
        return final

    def _evaluate(self, phase: str, step: int, *, show_images: bool = True) -> list[Evaluation]:
        started = time.monotonic()
        with self._keeper.phase("evaluate"):
            results = self._evaluator.phase(
                phase, step, self._answer, device=self._device, show_images=show_images
            )
        # A phase that an earlier start has evaluated is only read here.
        seconds: dict[str, float] = self._keeper.values["evaluation_seconds"]
        seconds.setdefault(phase, round(time.monotonic() - started, 3))
        for result in results:
            self._tracker.log(result.flat(), step=step)
        self._keeper.update()
        return results
