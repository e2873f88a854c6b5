"""The records that pass between modules: images, examples, predictions, scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

AnswerType = Literal["open", "closed"]
TypeOrigin = Literal["official", "rule"]


class ImageSource(Protocol):
    """An image that is read when it is needed, so that a pool of 650,000 rows stays small."""

    @property
    def name(self) -> str:
        """What an error message calls this image: a path, or a row of a data set."""

    def read(self) -> bytes:
        """Return the encoded file (JPEG, PNG, ...); raise `UserError` if it is missing."""


@runtime_checkable
class Fingerprinted(Protocol):
    """An image that can tell without being read whether it is still the same."""

    def fingerprint(self) -> str | None:
        """Return a text that changes whenever the bytes may have; None if only reading tells."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One question about one or more images, whatever data set it comes from.

    Attributes:
        id: Unique in its data set and stable between runs.
        images: At least one in a data set, in the order in which the question speaks of them;
            none where a model is asked blind.
        answers: At least one; the first is trained on, all count as right in scoring.
        type_origin: Whether the data set states `answer_type`, or a rule of ours derived it.
        source: Name of the data set.
        split: Split of the data set that the row belongs to, also where a set joins several.
        image_ids: One per image; equal ids mean the same picture (clusters in statistics).
        options: The choices that a multiple-choice question offers, in order and without letters;
            every answer is one of them. Empty for all other questions.
        difficulty: A number that the data set states, larger is harder; None if it states none.
    """

    id: str
    images: tuple[ImageSource, ...]
    question: str
    answers: tuple[str, ...]
    answer_type: AnswerType
    type_origin: TypeOrigin
    source: str
    split: str
    image_ids: tuple[str, ...]
    options: tuple[str, ...] = ()
    difficulty: float | None = None


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A model's answer to one example, with all that scoring needs.

    Attributes:
        id: Of the example.
        question: As the data set asks it.
        references: The right answers.
        prediction: The model's answer, after post-processing.
        answer_type: Whether the question is open or closed.
        source: Name of the data set.
        split: Split of the data set.
        cluster: Identity of the picture(s); questions of one cluster are not independent.
        options: The choices of a multiple-choice question; empty for all other questions.
        cut: Whether the answer hit the limit of new tokens; None if that is unknown.
        likelihood: Log-probabilities of the candidates by kind, where these gave the answer.
        level: Difficulty that the data set states, such as Kvasir-VQA-x1's complexity 1 to 3.
        logprob_mean: Per new token, the end of the turn included; None if unknown.
        logprob_sum: Log-probability of the whole answer; None if unknown.
        choice_probs: Probability of each choice at the answer's first token; None without choices.
        rephrased: Answers to other wordings of the question; see `evaluation.rephrasings`.
        blind_prediction: Answer without the picture; None where the blind evaluation did not run.
    """

    id: str
    question: str
    references: tuple[str, ...]
    prediction: str
    answer_type: AnswerType
    source: str
    split: str
    cluster: str
    options: tuple[str, ...] = ()
    cut: bool | None = None
    level: str = ""
    logprob_mean: float | None = None
    logprob_sum: float | None = None
    choice_probs: dict[str, float] | None = None
    likelihood: Mapping[str, Sequence[float]] | None = None
    rephrased: tuple[str, ...] = ()
    blind_prediction: str | None = None


@dataclass(frozen=True, kw_only=True)
class Score:
    """A mean with its count and 95 % interval.

    Attributes:
        mean: In the metric's unit.
        low: Lower end of the interval, in the same unit.
        high: Upper end of the interval.
        num_examples: Questions that the metric applies to.
    """

    mean: float
    low: float
    high: float
    num_examples: int
