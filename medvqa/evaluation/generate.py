"""Batched greedy decoding; questions about one picture share its part of the prompt."""

import logging
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, groupby, islice
from typing import TYPE_CHECKING, Any, TypeVar

from medvqa.config.evaluation import Decoding
from medvqa.config.training import Engine
from medvqa.data.example import Example
from medvqa.data.prefetch import ahead
from medvqa.evaluation.metrics import is_yes_or_no
from medvqa.fast.choice import ComputeEngine, choose_path, make_engine
from medvqa.models.encode import Encoder, encode_alone
from medvqa.models.loaded import LoadedModel
from medvqa.models.sample import Decoded, Sample
from medvqa.tracking.progress import track

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")
log = logging.getLogger(__name__)

ChoiceProbs = dict[str, float]
YES_NO = ("yes", "no")
ENCODING_THREADS = 4  # on a GPU, which would otherwise wait for pictures to be decoded


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A model's answer to one question.

    Attributes:
        cut: Whether it hit `max_new_tokens` before the end of the turn.
        num_tokens: New tokens, the end of the turn included.
        logprob: Summed log-probability of its new tokens; None if unknown.
        choice_probs: Probability of each choice at the first token; None for questions without
            choices, or with choices that begin alike.
        likelihood: Log-probabilities of the candidates by kind, where these gave the answer.
        rephrased: Answers to other wordings of the question.
    """

    text: str
    cut: bool = False
    num_tokens: int = 0
    # Rounding differs between batches, so these do not make two answers different.
    logprob: float | None = field(default=None, compare=False)
    choice_probs: ChoiceProbs | None = field(default=None, compare=False)
    likelihood: Mapping[str, Sequence[float]] | None = None
    rephrased: tuple[str, ...] = ()


def generate(
    loaded: LoadedModel,
    encoder: Encoder,
    examples: Sequence[Example],
    *,
    max_new_tokens: int,
    batch_size: int,
    decoding: Decoding = Decoding.auto,
    description: str = "answering",
    samples: Sequence[Sample] | None = None,
) -> list[Answer]:
    """Answer every example greedily, in the order of the examples.

    Prompts are left-padded. Up to rounding, neither the size of a batch nor sharing a prefix
    changes an answer; docs/engine.md says how often rounding matters in bfloat16. Where memory runs
    out, batches are halved, with a warning. `samples` are the examples, if already encoded.
    """
    if not examples:  # all were known already
        return []
    engine = make_engine(choose_path(loaded, Engine.auto, decoding).decoding, loaded, encoder)
    order = answering_order(examples)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    loaded.use_for(training=False)
    answers: dict[int, Answer] = {}
    on_gpu = loaded.device.type == "cuda"
    encoded = _encoded(encoder, examples, batches, samples, on_gpu=on_gpu)
    every = chain.from_iterable(encoded)
    with loaded.answering(), closing(encoded):
        for indices in track(batches, description=description):
            answered = within_memory(
                engine,
                list(islice(every, len(indices))),
                lambda part: engine.answer(part, max_new_tokens),
                lambda one, two: one.joined(two, encoder.end_token_id),
            )
            own = _read(answered, [examples[i] for i in indices], encoder)
            answers |= zip(indices, own, strict=True)
    return [answers[place] for place in range(len(examples))]


def answering_order(examples: Sequence[Example]) -> list[int]:
    """Return the examples' places in the order in which they are answered.

    Questions about the same pictures meet in a batch. The most pictures come first, so that a
    batch that does not fit into memory fails at the start.
    """
    return sorted(
        range(len(examples)), key=lambda i: (-len(examples[i].images), _pictures(examples[i]), i)
    )


def even_batch_size(num_examples: int, batch_size: int) -> int:
    """Return a size, `batch_size` at most, that makes even batches.

    From three batches on, their number is a multiple of four. Two or four GPUs then have equal
    shares of whole batches. The batches, and so their rounding, are those of one GPU.
    """
    num_batches = math.ceil(num_examples / batch_size)
    if num_batches > 2:
        num_batches = math.ceil(num_batches / 4) * 4
    return max(1, math.ceil(num_examples / max(1, num_batches)))


def _pictures(example: Example) -> tuple[str, ...]:
    return tuple(image.name for image in example.images)


def _encoded(
    encoder: Encoder,
    examples: Sequence[Example],
    batches: Sequence[Sequence[int]],
    samples: Sequence[Sample] | None,
    *,
    on_gpu: bool,
) -> Generator[list[Sample]]:
    """Yield the batches' samples in pieces; on a GPU, threads encode those that are not ready.

    A piece is one picture's questions of a batch, so one thread decodes each picture. All threads
    share the first batch, for which the GPU waits.
    """
    if samples is not None:
        return ([samples[i] for i in batch] for batch in batches)
    threads = ENCODING_THREADS if on_gpu else 0
    pieces = [
        [batch]
        if encoder.encodes_batches
        else [list(own) for _, own in groupby(batch, key=lambda i: _pictures(examples[i]))]
        for batch in batches
    ]
    return ahead(
        lambda piece: encoder.encode_batch([examples[i] for i in piece], training=False),
        [*chain.from_iterable(pieces)],
        num_threads=threads,
        num_waiting=max(threads, *map(len, pieces)),
        initializer=encode_alone(),
    )


def _read(answered: Decoded, examples: Sequence[Example], encoder: Encoder) -> list[Answer]:
    """Return a batch's answers."""
    tokenizer, end = encoder.processor.tokenizer, encoder.end_token_id
    probs = _choice_probs(answered, [_choice_ids(e, tokenizer) for e in examples])
    is_cut = (answered.tokens != end).all(dim=1).tolist()
    ended = _ended(answered.tokens, end)
    texts = [text.strip() for text in tokenizer.batch_decode(ended, skip_special_tokens=True)]
    lengths = [len(row) + (not cut) for row, cut in zip(ended, is_cut, strict=True)]
    totals = answered.logprobs.sum(dim=1).tolist()
    return [
        Answer(text=text, cut=cut, num_tokens=length, logprob=total, choice_probs=own)
        for text, cut, length, total, own in zip(texts, is_cut, lengths, totals, probs, strict=True)
    ]


def _choice_ids(example: Example, tokenizer: Any) -> dict[str, list[int]]:
    """Return the ids of the first token of each choice, in lower and upper case.

    Empty if there are no choices, or if two of them begin with the same token.
    """
    is_yes_no = example.answer_type == "closed" and is_yes_or_no(example.answers[0])
    choices = example.options or (YES_NO if is_yes_no else ())
    ids: dict[str, list[int]] = {}
    for choice in choices:
        spellings = {choice, choice.lower(), choice.capitalize()}
        encoded = [tokenizer(s, add_special_tokens=False)["input_ids"] for s in spellings]
        ids[choice] = sorted({tokens[0] for tokens in encoded if tokens})
    every = [token for tokens in ids.values() for token in tokens]
    return ids if len(every) == len(set(every)) else {}


def _choice_probs(
    answered: Decoded, choices: Sequence[dict[str, list[int]]]
) -> list[ChoiceProbs | None]:
    """Return the probability of each choice at the first new token."""
    import torch

    flat = [(row, token) for row, ids in enumerate(choices) for t in ids.values() for token in t]
    if not flat:
        return [None] * len(choices)
    rows, tokens = torch.tensor(flat, device=answered.first_logprobs.device).T
    values = iter(answered.first_logprobs[rows, tokens].exp().tolist())
    return [
        {choice: sum(next(values) for _ in tokens) for choice, tokens in ids.items()} or None
        for ids in choices
    ]


def _ended(new: "torch.Tensor", end_token_id: int) -> "list[torch.Tensor]":
    """Cut each answer behind its first end token."""
    ends = (new == end_token_id).int()
    return [
        row[: int(end.argmax())] if end.any() else row for row, end in zip(new, ends, strict=True)
    ]


def within_memory(
    engine: ComputeEngine,
    samples: Sequence[Sample],
    compute: Callable[[Sequence[Sample]], Result],
    join: Callable[[Result, Result], Result],
) -> Result:
    """Return the result of the samples; where memory runs out, the joined results of the halves."""
    import torch

    try:
        return compute(samples)
    except torch.OutOfMemoryError:
        has_released = engine.release_memory()
        if len(samples) == 1 and not has_released:
            raise
    torch.cuda.empty_cache()
    if has_released:  # training's captured passes
        return within_memory(engine, samples, compute, join)
    log.warning("out of memory with %d questions at once: half of them", len(samples))
    middle = len(samples) // 2
    halves = (samples[:middle], samples[middle:])
    return join(*(within_memory(engine, half, compute, join) for half in halves))
