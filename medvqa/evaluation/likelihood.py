"""Multiple choice and yes/no by likelihood: which answer the model finds most probable.

A yes/no question compares the probabilities of the first tokens of yes and no. A question with
options compares the mean log-probability of each option's text, so that a long option is not at a
disadvantage (Brown et al., 2020, section 2.4); sums, and the letters' first tokens, are recorded
too. The highest value is the answer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from medvqa.config.evaluation import EvaluationConfig, Scoring
from medvqa.data.example import Example
from medvqa.evaluation.choice import LETTERS
from medvqa.evaluation.generate import Answers, generate
from medvqa.evaluation.metrics import is_yes_or_no
from medvqa.models.encode import Encoder
from medvqa.models.loaded import LoadedModel
from medvqa.models.sample import Sample
from medvqa.tracking.progress import track

if TYPE_CHECKING:
    import torch

YES_NO = ("yes", "no")


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """What one question's candidates score; all values are natural logarithms.

    Attributes:
        candidates: The options, or yes and no.
        decided_by: Name of the values of which the highest is the answer.
        values: Name -> one value per candidate: `mean` and `sum` over the tokens of its text,
            `letter` or `first_token` of one token.
    """

    candidates: tuple[str, ...]
    decided_by: str
    values: dict[str, tuple[float, ...]]

    @property
    def answer(self) -> str:
        """The most probable candidate; the first one of several that are equal."""
        return self.candidates[self._place]

    @property
    def _place(self) -> int:
        scores = self.values[self.decided_by]
        return max(range(len(scores)), key=scores.__getitem__)

    def row(self) -> tuple[str, bool, int, float, dict[str, float]]:
        """Return text, whether it is cut, tokens, log-probability and shares of the first token."""
        total = self.values.get("sum", self.values[self.decided_by])[self._place]
        mean = self.values[self.decided_by][self._place]
        first = self.values.get("letter", self.values[self.decided_by])
        shares = {c: math.exp(value) for c, value in zip(self.candidates, first, strict=True)}
        return self.answer, False, round(total / mean) if mean else 1, total, shares


def by_generation(
    loaded: LoadedModel,
    encoder: Encoder,
    examples: Sequence[Example],
    config: EvaluationConfig,
    description: str,
) -> Answers:
    """Return what the model writes."""
    return generate(
        loaded,
        encoder,
        examples,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        decoding=config.decoding,
        description=description,
    )


def by_likelihood(
    loaded: LoadedModel,
    encoder: Encoder,
    examples: Sequence[Example],
    config: EvaluationConfig,
    description: str,
) -> Answers:
    """Return the most probable candidates; open questions without options are generated."""
    places = [place for place, example in enumerate(examples) if is_scorable(example)]
    rest = [place for place in range(len(examples)) if place not in set(places)]
    scored = likelihoods(
        loaded, encoder, [examples[place] for place in places], batch_size=config.batch_size
    )
    written = by_generation(loaded, encoder, [examples[p] for p in rest], config, description)
    fields = (written.texts, written.cut, written.num_tokens, written.logprobs,
              written.choice_probs)  # fmt: skip
    rows = dict(zip(rest, zip(*fields, strict=True), strict=True))
    rows |= {place: one.row() for place, one in zip(places, scored, strict=True)}
    columns = zip(*(rows[place] for place in range(len(examples))), strict=True)
    texts, cut, num_tokens, logprobs, choice_probs = map(tuple, columns)
    return Answers(
        texts=texts,
        cut=cut,
        num_tokens=num_tokens,
        decoding=written.decoding,
        logprobs=logprobs,
        choice_probs=choice_probs,
        likelihoods={place: one.values for place, one in zip(places, scored, strict=True)},
    )


ANSWERERS = {Scoring.generate: by_generation, Scoring.likelihood: by_likelihood}


def is_scorable(example: Example) -> bool:
    """Return whether the answers to choose from are known."""
    return bool(example.options) or all(map(is_yes_or_no, example.answers))


def likelihoods(
    loaded: LoadedModel, encoder: Encoder, examples: Sequence[Example], *, batch_size: int
) -> list[Likelihood]:
    """Return the candidates' log-probabilities, question by question.

    Args:
        loaded: Model.
        encoder: Of the same model.
        examples: Questions for which `is_scorable` holds.
        batch_size: Texts computed at once.
    """
    import torch

    loaded.use_for(training=False)
    results = []
    with torch.inference_mode():
        for example in track(examples, description="scoring"):
            texts = _texts(example)
            samples = [encoder.encode(replace(example, answers=(text,))) for text in texts]
            rows: list[list[float]] = []
            for start in range(0, len(samples), batch_size):
                rows += _token_log_probabilities(
                    loaded, encoder, samples[start : start + batch_size]
                )
            results.append(_likelihood(example, rows))
    return results


def _texts(example: Example) -> list[str]:
    """Return what is scored: the options and their letters, or yes and no."""
    if not example.options:
        return list(YES_NO)
    return [*example.options, *LETTERS[: len(example.options)]]


def _likelihood(example: Example, rows: Sequence[Sequence[float]]) -> Likelihood:
    if not example.options:
        first = tuple(row[0] for row in rows)
        return Likelihood(
            candidates=YES_NO, decided_by="first_token", values={"first_token": first}
        )
    num_options = len(example.options)
    texts, letters = rows[:num_options], rows[num_options:]
    return Likelihood(
        candidates=example.options,
        decided_by="mean",
        values={
            "mean": tuple(sum(row) / len(row) for row in texts),
            "sum": tuple(map(sum, texts)),
            "letter": tuple(row[0] for row in letters),
        },
    )


def _token_log_probabilities(
    loaded: LoadedModel, encoder: Encoder, samples: Sequence[Sample]
) -> list[list[float]]:
    """Return the log-probability of each answer token, without the end of the turn."""
    batch = {
        name: value.to(loaded.device) for name, value in encoder.training_batch(samples).items()
    }
    labels: torch.Tensor = batch.pop("labels")
    logits: Any = loaded.model(**batch).logits
    rows = []
    for sample, row_logits, row_labels in zip(samples, logits, labels, strict=True):
        places = (row_labels != -100).nonzero().flatten()
        num_text = sum(token != encoder.end_token_id for token in sample.answer_ids)
        places = places[:num_text]
        # The logits at a place predict the token behind it.
        chosen = row_logits[places - 1].float().log_softmax(-1)
        rows.append(chosen.gather(1, row_labels[places].unsqueeze(1)).flatten().tolist())
    return rows
