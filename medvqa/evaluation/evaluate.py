"""Generate, score and write the predictions of one model state on one set."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TypeVar

from medvqa.config.errors import UserError
from medvqa.config.evaluation import EvaluationConfig
from medvqa.data.example import AnswerType, Example, Prediction
from medvqa.evaluation import rephrasing
from medvqa.evaluation.answering import Answerer
from medvqa.evaluation.generate import Answer
from medvqa.evaluation.phase_scores import Evaluation, read_evaluation, write_evaluation
from medvqa.evaluation.score import (
    majority_answers,
    score_predictions,
)
from medvqa.tracking.record import read_lines, write_lines
from medvqa.training.ranks import ALONE, Ranks

Result = TypeVar("Result")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluator:
    """Evaluates phases of one run; what is already on the disk is not done again."""

    sets: Mapping[str, Sequence[Example]]
    config: EvaluationConfig
    _: KW_ONLY
    directory: Path
    seed: int
    ranks: Ranks = ALONE

    def phase(
        self,
        phase: str,
        step: int,
        answer: Answerer,
        *,
        device: str = "cpu",
        show_images: bool = True,
    ) -> list[Evaluation]:
        """Answer, score and write every set that has no whole result on the disk."""
        results = []
        for name, examples in self.sets.items():
            place = self.place(phase, name)
            result = self.ranks.first(stored, place, read_evaluation, len(examples))
            if result is None:
                shown = examples if show_images else [without_images(e) for e in examples]
                answers = self._answers(place, shown, answer)
                images = "shown" if show_images else "removed"
                result = self.ranks.first(
                    self._score, place, step, answers, device=device, images=images
                )
            results.append(result)
        return results

    def majority(
        self, training: Sequence[tuple[AnswerType, str]], *, device: str
    ) -> list[Evaluation]:
        """Score the training pool's most frequent answer of each type: the floor of any model."""

        def answer(_: Path, examples: Sequence[Example]) -> list[Answer]:
            texts = majority_answers(training, [example.answer_type for example in examples])
            return [Answer(text=text) for text in texts]

        return self.phase("majority", 0, answer, device=device, show_images=False)

    def _answers(self, place: Path, examples: Sequence[Example], answer: Answerer) -> list[Answer]:
        """Return the answers, each with those to its rephrasings where these are configured."""
        phase, name = place.parent.name, place.name
        count = self.config.rephrasings if phase in rephrasing.PHASES else 0
        every = answer(place, [*examples, *rephrasing.all_rephrased(examples, count)])
        answers = rephrasing.with_rephrased(every, len(examples))
        if num_cut := sum(own.cut for own in answers):
            log.warning(
                "%s/%s: %d of %d answers were cut at evaluation.max_new_tokens=%d",
                *(phase, name, num_cut, len(examples), self.config.max_new_tokens),
            )
        return answers

    def _score(
        self, place: Path, step: int, answers: Sequence[Answer], *, device: str, images: str
    ) -> Evaluation:
        predictions = to_predictions(self.sets[place.name], answers)
        scored = score_predictions(predictions, self.config, device=device, seed=self.seed)
        return write_evaluation(place, step, predictions, scored, self.config, images=images)

    def join_blind(self) -> None:
        """Write the answer without the picture beside each final one."""
        for name in self.sets:
            path = self.place("final", name) / "predictions.jsonl"
            blind = read_lines(self.place("blind", name) / "predictions.jsonl")
            answers = {row["id"]: row["prediction"] for row in blind}
            rows = read_lines(path)
            write_lines(path, [{**row, "blind_prediction": answers[row["id"]]} for row in rows])

    def place(self, phase: str, name: str) -> Path:
        """Return the directory of a phase's files on one set."""
        return self.directory / "evaluation" / phase / name


def stored(place: Path, read: Callable[[Path], Result], num_answers: int) -> Result | None:
    """Return what the metrics.json of a place holds; None if there is none, or it is damaged."""
    if not (place / "metrics.json").is_file():
        return None
    try:
        result = read(place / "metrics.json")
        num_whole = len(read_lines(place / "predictions.jsonl"))
        if num_whole == num_answers:
            return result
        damage = f"predictions.jsonl holds {num_whole} of {num_answers} answers"
    except UserError as error:
        damage = str(error)
    log.warning("%s/%s is evaluated again: %s", place.parent.name, place.name, damage)
    return None


def without_images(example: Example) -> Example:
    """Return the question with no picture: the prompt then has no image marker and no patches.

    A grey picture instead would be a picture too, one that training never saw.
    """
    return replace(example, images=(), image_ids=())


def to_predictions(examples: Sequence[Example], answers: Sequence[Answer]) -> list[Prediction]:
    """Join examples and answers; questions on the same picture(s) form one cluster."""
    return [
        Prediction(
            id=example.id,
            question=example.question,
            references=example.answers,
            prediction=own.text,
            answer_type=example.answer_type,
            source=example.source,
            split=example.split,
            cluster="+".join(example.image_ids),
            options=example.options,
            cut=own.cut,
            logprob_sum=own.logprob,
            logprob_mean=None if own.logprob is None else own.logprob / max(own.num_tokens, 1),
            choice_probs=own.choice_probs,
            likelihood=own.likelihood,
            rephrased=own.rephrased,
            level="" if example.difficulty is None else f"{example.difficulty:g}",
        )
        for example, own in zip(examples, answers, strict=True)
    ]
