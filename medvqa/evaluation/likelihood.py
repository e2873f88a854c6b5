"""Multiple choice and yes/no by likelihood: which answer the model finds most probable.

A yes/no question compares the probabilities of the first tokens of yes and no. A question with
options compares the log-probability of each option's text. The mean over tokens counts, so that a
long option is not at a disadvantage. Sums, and the letters' first tokens, are recorded too. The
highest value is the answer. Source: Brown et al., 2020, section 2.4.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace

from medvqa.config.evaluation import Decoding, EvaluationConfig, Scoring
from medvqa.config.training import Engine
from medvqa.data.example import Example
from medvqa.evaluation.choice import LETTERS
from medvqa.evaluation.generate import YES_NO, Answer, answering_order, generate, within_memory
from medvqa.evaluation.metrics import is_yes_or_no
from medvqa.fast.choice import choose_path, make_engine
from medvqa.models.encode import Encoder
from medvqa.models.loaded import LoadedModel
from medvqa.tracking.progress import track


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
    def answer(self) -> Answer:
        """The most probable candidate; the first one of several that are equal."""
        scores = self.values[self.decided_by]
        place = max(range(len(scores)), key=scores.__getitem__)
        total, mean = self.values.get("sum", scores)[place], scores[place]
        first = zip(self.candidates, self.values.get("letter", scores), strict=True)
        return Answer(
            text=self.candidates[place],
            num_tokens=round(total / mean) if mean else 1,
            logprob=total,
            choice_probs={candidate: math.exp(value) for candidate, value in first},
            likelihood=self.values,
        )


def by_generation(
    loaded: LoadedModel,
    encoder: Encoder,
    examples: Sequence[Example],
    config: EvaluationConfig,
    description: str,
) -> list[Answer]:
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
) -> list[Answer]:
    """Return the most probable candidates; open questions without options are generated."""
    places = [place for place, example in enumerate(examples) if is_scorable(example)]
    rest = [place for place in range(len(examples)) if place not in set(places)]
    scored = likelihoods(
        loaded,
        encoder,
        [examples[place] for place in places],
        batch_size=config.batch_size,
        decoding=config.decoding,
    )
    written = by_generation(loaded, encoder, [examples[p] for p in rest], config, description)
    answers = dict(zip(rest, written, strict=True))
    answers |= {place: own.answer for place, own in zip(places, scored, strict=True)}
    return [answers[place] for place in range(len(examples))]


ANSWERERS = {Scoring.generate: by_generation, Scoring.likelihood: by_likelihood}


def is_scorable(example: Example) -> bool:
    """Return whether the answers to choose from are known."""
    return bool(example.options) or all(map(is_yes_or_no, example.answers))


def likelihoods(
    loaded: LoadedModel,
    encoder: Encoder,
    examples: Sequence[Example],
    *,
    batch_size: int,
    decoding: Decoding = Decoding.auto,
) -> list[Likelihood]:
    """Return the candidates' log-probabilities, question by question.

    Args:
        loaded: Model.
        encoder: Of the same model.
        examples: Questions for which `is_scorable` holds.
        batch_size: Texts computed at once; halved where memory runs out.
        decoding: `shared_prefix` computes each picture's part of the prompts of a batch once.
    """
    engine = make_engine(choose_path(loaded, Engine.auto, decoding).decoding, loaded, encoder)
    loaded.use_for(training=False)
    order = answering_order(examples)
    candidates = [(i, text) for i in order for text in _texts(examples[i])]
    rows: dict[int, list[list[float]]] = {i: [] for i in order}
    with loaded.answering():
        starts = range(0, len(candidates), batch_size)
        for start in track(starts, description="scoring"):
            batch = candidates[start : start + batch_size]
            questions = [replace(examples[i], answers=(text,)) for i, text in batch]
            samples = encoder.encode_batch(questions, training=True)
            values = within_memory(engine, samples, engine.log_probabilities, operator.add)
            for (i, _), sample, row in zip(batch, samples, values, strict=True):
                num_text = sum(token != encoder.end_token_id for token in sample.answer_ids)
                rows[i].append(row[:num_text])
    return [_likelihood(example, rows[i]) for i, example in enumerate(examples)]


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
