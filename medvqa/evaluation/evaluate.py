"""Generate, score and write the predictions of one model state on one set."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from medvqa.config.errors import UserError
from medvqa.config.evaluation import EvaluationConfig
from medvqa.data.example import AnswerType, Example, Prediction, Score
from medvqa.evaluation.generate import Answers, generate
from medvqa.evaluation.scoring import (
    Scored,
    Summary,
    majority_baseline,
    score_predictions,
    write_predictions,
)
from medvqa.models.encode import Encoder
from medvqa.models.loaded import LoadedModel
from medvqa.tracking.record import read_json, read_lines, write_json
from medvqa.training.ranks import ALONE, Ranks

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One phase on one set, as metrics.json keeps it.

    Attributes:
        phase: `zero_shot`, `majority`, `after_` with the stage that has just ended, `blind`, or
            `final`.
        num_cut_answers: Answers that hit `max_new_tokens`.
    """

    phase: str
    set_name: str
    step: int
    summary: Summary
    num_cut_answers: int

    def flat(self) -> dict[str, float]:
        """Return `eval/<set>/<phase>/<group>/<metric>` -> mean, for a tracker."""
        return {
            f"eval/{self.set_name}/{self.phase}/{group}/{metric}": score.mean
            for group, metrics in self.summary.items()
            for metric, score in metrics.items()
        }


class Evaluator:
    """Evaluates phases of one run; what is already on the disk is not done again."""

    def __init__(
        self,
        sets: Mapping[str, Sequence[Example]],
        config: EvaluationConfig,
        *,
        directory: Path,
        seed: int,
        ranks: Ranks = ALONE,
    ) -> None:
        self.sets = sets
        self.config = config
        self.directory = directory
        self.seed = seed
        self.ranks = ranks

    def model(
        self,
        loaded: LoadedModel,
        encoder: Encoder,
        *,
        phase: str,
        step: int,
        show_images: bool = True,
    ) -> list[Evaluation]:
        """Answer and score every set with the model as it is now."""
        results = []
        for name, examples in self.sets.items():
            done = self.ranks.first(self._read, phase, name, len(examples))
            if done is None:
                shown = examples if show_images else [without_images(e) for e in examples]
                answers = self._answers(loaded, encoder, shown, f"{phase}: answering {name}")
                if answers.num_cut:
                    log.warning(
                        "%s/%s: %d of %d answers were cut at evaluation.max_new_tokens=%d",
                        *(phase, name, answers.num_cut, len(examples)),
                        self.config.max_new_tokens,
                    )
                predictions = to_predictions(examples, answers.texts)
                device = loaded.device.type
                done = self.ranks.first(
                    self._score,
                    *(phase, name, step, predictions, answers.num_cut),
                    device=device,
                    images="shown" if show_images else "removed",
                )
            results.append(done)
        return results

    def _answers(
        self, loaded: LoadedModel, encoder: Encoder, examples: Sequence[Example], description: str
    ) -> Answers:
        """Return all answers in the set's order; each rank answers its share."""
        shares = shares_by_picture(examples, self.ranks.size)
        mine = generate(
            loaded,
            encoder,
            [examples[index] for index in shares[self.ranks.rank]],
            max_new_tokens=self.config.max_new_tokens,
            batch_size=self.config.batch_size,
            decoding=self.config.decoding,
            description=description,
        )
        rows = {
            index: row
            for share, part in zip(shares, self.ranks.gather(mine), strict=True)
            for index, row in zip(
                share, zip(part.texts, part.cut, part.num_tokens, strict=True), strict=True
            )
        }
        in_order = [rows[index] for index in range(len(examples))]
        texts, cut, num_tokens = zip(*in_order, strict=True)
        return Answers(texts=texts, cut=cut, num_tokens=num_tokens, decoding=mine.decoding)

    def majority(
        self, training: Sequence[tuple[AnswerType, str]], *, device: str
    ) -> list[Evaluation]:
        """Score the training pool's most frequent answer of each type: the floor of any model.

        Args:
            training: The pool's answers.
            device: The model's, so that BERTScore's encoder is loaded once.
        """
        return self.ranks.first(self._majority, training, device)

    def _majority(
        self, training: Sequence[tuple[AnswerType, str]], device: str
    ) -> list[Evaluation]:
        results = []
        for name, examples in self.sets.items():
            done = self._read("majority", name, len(examples))
            if done is None:
                blank = to_predictions(examples, [""] * len(examples))
                predictions = majority_baseline(training, blank)
                done = self._score(
                    "majority", name, 0, predictions, 0, device=device, images="removed"
                )
            results.append(done)
        return results

    def _score(
        self,
        phase: str,
        name: str,
        step: int,
        predictions: Sequence[Prediction],
        num_cut: int,
        *,
        device: str,
        images: Literal["shown", "removed"],
    ) -> Evaluation:
        scored = score_predictions(predictions, self.config, device=device, seed=self.seed)
        result = Evaluation(
            phase=phase,
            set_name=name,
            step=step,
            summary=scored.summary,
            num_cut_answers=num_cut,
        )
        directory = self.place(phase, name)
        directory.mkdir(parents=True, exist_ok=True)
        write_predictions(directory / "predictions.jsonl", predictions, scored.items)
        # Written last: its presence says that the evaluation is whole.
        protocol = {**self._protocol(scored), "images": images}
        write_json(directory / "metrics.json", {**asdict(result), **protocol})
        return result

    def _protocol(self, scored: Scored) -> dict[str, Any]:
        return {
            "normalizer": self.config.normalizer.value,
            "numeric_tolerance": self.config.numeric_tolerance,
            "max_new_tokens": self.config.max_new_tokens,
            "bertscore": scored.bertscore,
        }

    def place(self, phase: str, name: str) -> Path:
        """Return the directory of a phase's files on one set."""
        return self.directory / "evaluation" / phase / name

    def _read(self, phase: str, name: str, num_examples: int) -> Evaluation | None:
        """Return what is on the disk; None if there is nothing, or it is damaged."""
        place = self.place(phase, name)
        path = place / "metrics.json"
        if not path.is_file():
            return None
        try:
            found = read_evaluation(path)
            num_whole = len(read_lines(place / "predictions.jsonl"))
        except UserError as error:
            log.warning("%s/%s is evaluated again: %s", phase, name, error)
            return None
        if num_whole != num_examples:
            log.warning(
                "%s/%s is evaluated again: predictions.jsonl holds %d of %d answers",
                *(phase, name, num_whole, num_examples),
            )
            return None
        return found


def shares_by_picture(examples: Sequence[Example], num_shares: int) -> list[list[int]]:
    """Divide the questions so that those about the same picture(s) stay together.

    Their common part of the prompt is then computed by one rank only. The picture with the most
    questions goes first, each to the smallest share so far; a share keeps the order of the set.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, example in enumerate(examples):
        alone = (example.id,)  # where no picture is shown, nothing is shared
        groups.setdefault(example.image_ids or alone, []).append(index)
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    for group in sorted(groups.values(), key=len, reverse=True):
        min(shares, key=len).extend(group)
    return [sorted(share) for share in shares]


def read_evaluation(path: Path) -> Evaluation:
    """Return the evaluation that a metrics.json holds.

    Raises:
        UserError: If it is damaged.
    """
    stored = read_json(path)
    try:
        summary = {
            group: {metric: Score(**score) for metric, score in metrics.items()}
            for group, metrics in stored["summary"].items()
        }
        fields = ("phase", "set_name", "step", "num_cut_answers")
        return Evaluation(
            summary=summary,
            **{field: stored[field] for field in fields},
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); say fresh=true to start over") from error


def read_evaluations(directory: Path) -> list[Evaluation]:
    """Return all evaluations of a run: the baselines, then the stages in order, then the final."""
    found = [read_evaluation(p) for p in directory.glob("evaluation/*/*/metrics.json")]
    rank = {"majority": 0, "zero_shot": 1, "final": 3}
    return sorted(found, key=lambda e: (e.set_name, rank.get(e.phase, 2), e.step))


def without_images(example: Example) -> Example:
    """Return the question with no picture: the prompt then has no image marker and no patches.

    A grey picture instead would be a picture too, one that training never saw.
    """
    return replace(example, images=(), image_ids=())


def to_predictions(examples: Sequence[Example], texts: Sequence[str]) -> list[Prediction]:
    """Join examples and answers; questions on the same picture(s) form one cluster."""
    return [
        Prediction(
            id=example.id,
            question=example.question,
            references=example.answers,
            prediction=text,
            answer_type=example.answer_type,
            source=example.source,
            split=example.split,
            cluster="+".join(example.image_ids),
        )
        for example, text in zip(examples, texts, strict=True)
    ]
