"""Batched greedy decoding; questions about one picture share its part of the prompt."""

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, chain, groupby, islice
from typing import TYPE_CHECKING, Any

from medvqa.config.errors import UserError
from medvqa.config.evaluation import Decoding
from medvqa.data.example import Example
from medvqa.data.prefetch import ahead
from medvqa.fast.engine import PackedModel, is_supported
from medvqa.models.encode import Encoder, encode_alone
from medvqa.models.loaded import LoadedModel
from medvqa.models.sample import Sample
from medvqa.tracking.progress import track

if TYPE_CHECKING:
    import torch

    from medvqa.fast.decoder import Cache

log = logging.getLogger(__name__)

Decode = Callable[[Encoder, Sequence[Sample], int], "torch.Tensor"]  # the last: new tokens

ENCODING_THREADS = 4  # on a GPU, which would otherwise wait for pictures to be decoded


@dataclass(frozen=True)
class Answers:
    """Generated texts in the order of the examples.

    Attributes:
        cut: One an answer: whether it hit `max_new_tokens` before the end of the turn.
        num_tokens: One an answer: new tokens, the end of the turn included.
        decoding: How they were computed.
    """

    texts: tuple[str, ...]
    cut: tuple[bool, ...]
    num_tokens: tuple[int, ...]
    decoding: str

    @property
    def num_cut(self) -> int:
        """Answers that hit the limit."""
        return sum(self.cut)


def generate(
    loaded: LoadedModel,
    encoder: Encoder,
    examples: Sequence[Example],
    *,
    max_new_tokens: int,
    batch_size: int,
    decoding: Decoding = Decoding.auto,
    description: str = "answering",
) -> Answers:
    """Answer every example greedily.

    Prompts are left-padded; neither the size of a batch nor sharing a prefix changes an answer,
    up to rounding: docs/engine.md says how often that matters in bfloat16.

    Args:
        loaded: Model.
        encoder: Of the same model.
        examples: Questions.
        max_new_tokens: An answer that reaches it is cut, and counted.
        batch_size: Questions at once; halved, with a warning, when memory runs out.
        decoding: `shared_prefix` computes each picture's part of the prompt once.
        description: Of the progress bar.
    """
    import torch

    chosen = chosen_decoding(decoding, loaded)
    if not examples:  # all were known already
        return Answers((), (), (), chosen.value)
    decode: Decode = partial(plain, loaded)
    if chosen is Decoding.shared_prefix:
        decode = partial(shared_prefix, PackedModel(loaded, encoder.image_token_id))
    tokenizer = encoder.processor.tokenizer
    texts = [""] * len(examples)
    cut, num_tokens = [False] * len(examples), [0] * len(examples)

    def pictures_of(index: int) -> tuple[str, ...]:
        return tuple(image.name for image in examples[index].images)

    # Pictures first, so that their questions meet in a batch; the most pictures come first, so
    # that a batch that does not fit into memory fails at the start.
    order = sorted(
        range(len(examples)), key=lambda i: (-len(examples[i].images), pictures_of(i), i)
    )
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    loaded.use_for(training=False)
    threads = ENCODING_THREADS if loaded.device.type == "cuda" else 0
    # A thread encodes one picture's questions of a batch: within it each picture is decoded by one
    # thread, and the first batch, for which the GPU waits, by all of them.
    pieces = [[list(own) for _, own in groupby(batch, key=pictures_of)] for batch in batches]
    encoded = ahead(
        lambda piece: [encoder.encode(examples[i]) for i in piece],
        [*chain.from_iterable(pieces)],
        num_threads=threads,
        num_waiting=max(threads, *map(len, pieces)),
        initializer=encode_alone(),
    )
    with torch.inference_mode(), closing(encoded):
        every = chain.from_iterable(encoded)
        for indices in track(batches, description=description):
            samples = list(islice(every, len(indices)))
            new = _within_memory(decode, encoder, samples, max_new_tokens)
            endless = (new != tokenizer.eos_token_id).all(dim=1).tolist()
            ended = _ended(new, tokenizer)
            decoded = tokenizer.batch_decode(ended, skip_special_tokens=True)
            for index, text, is_cut, row in zip(indices, decoded, endless, ended, strict=True):
                texts[index], cut[index] = text.strip(), is_cut
                num_tokens[index] = len(row) + (not is_cut)
    return Answers(tuple(texts), tuple(cut), tuple(num_tokens), chosen.value)


def chosen_decoding(wanted: Decoding, loaded: LoadedModel) -> Decoding:
    """Return what `auto` stands for: Unsloth's kernels expect transformers' own loop.

    Raises:
        UserError: If a prefix shall be shared and nothing here knows the model's layers.
    """
    if not is_supported(loaded):
        if wanted is Decoding.shared_prefix:
            raise UserError(
                "evaluation.decoding=shared_prefix cannot compute "
                f"{loaded.inner.config.model_type} on model.backend={loaded.backend.value}; "
                "say evaluation.decoding=auto"
            )
        return Decoding.plain
    return Decoding.shared_prefix if wanted is Decoding.auto else wanted


def _ended(new: "torch.Tensor", tokenizer: Any) -> "list[torch.Tensor]":
    """Cut each answer behind its first end token."""
    ends = (new == tokenizer.eos_token_id).int()
    return [
        row[: int(end.argmax())] if end.any() else row for row, end in zip(new, ends, strict=True)
    ]


def _within_memory(
    decode: Decode,
    encoder: Encoder,
    samples: Sequence[Sample],
    max_new_tokens: int,
) -> "torch.Tensor":
    """Decode; where memory runs out, decode the halves."""
    import torch

    try:
        return decode(encoder, samples, max_new_tokens)
    except torch.OutOfMemoryError:
        if len(samples) == 1:
            raise
        log.warning("out of memory with %d questions at once: half of them", len(samples))
    torch.cuda.empty_cache()
    middle = len(samples) // 2
    halves = [
        _within_memory(decode, encoder, part, max_new_tokens)
        for part in (samples[:middle], samples[middle:])
    ]
    width = max(half.shape[1] for half in halves)
    pad = encoder.processor.tokenizer.eos_token_id
    return torch.cat(
        [torch.nn.functional.pad(half, (0, width - half.shape[1]), value=pad) for half in halves]
    )


def plain(
    loaded: LoadedModel, encoder: Encoder, samples: Sequence[Sample], max_new_tokens: int
) -> "torch.Tensor":
    """Return new tokens (B, N) on the CPU by transformers' own loop, the reference."""
    batch = {k: v.to(loaded.device) for k, v in encoder.generation_batch(samples).items()}
    with loaded.autocast():
        output = loaded.model.generate(
            **batch,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            # Qwen2-VL's own settings sample and penalise repetition; greedy means greedy.
            temperature=1.0,
            top_p=1.0,
            top_k=50,
            repetition_penalty=1.0,
            pad_token_id=encoder.pad_token_id,
            eos_token_id=encoder.processor.tokenizer.eos_token_id,
        )
    # Only the new tokens: the prompt never leaks into the answer.
    new: torch.Tensor = output[:, batch["input_ids"].shape[1] :].cpu()
    return new


def shared_prefix(
    model: PackedModel, encoder: Encoder, samples: Sequence[Sample], max_new_tokens: int
) -> "torch.Tensor":
    """Return new tokens (B, N) on the CPU; equal beginnings of prompts are computed once.

    The beginning ends with the last image token: questions about one picture differ behind it.
    """
    import torch

    splits = [_num_prefix_tokens(sample, encoder.image_token_id) for sample in samples]
    keys = [
        (sample.image_keys, sample.prompt_ids[:split])
        for sample, split in zip(samples, splits, strict=True)
    ]
    groups = [list(members) for _, members in groupby(range(len(samples)), keys.__getitem__)]
    rests = [sample.prompt_ids[split:] for sample, split in zip(samples, splits, strict=True)]
    room = max(len(sample.prompt_ids) for sample in samples) + max_new_tokens
    state = _Branches(model, num_rows=len(samples), room=room)
    state.begin([samples[group[0]] for group in groups], [splits[g[0]] for g in groups], groups)
    logits = state.extend(rests)
    end = encoder.processor.tokenizer.eos_token_id
    columns: list[torch.Tensor] = []
    finished = torch.zeros(len(samples), dtype=torch.bool, device=logits.device)
    while True:
        token = logits.argmax(dim=-1).masked_fill(finished, end)
        columns.append(token)
        finished = finished | (token == end)
        if len(columns) == max_new_tokens or bool(finished.all()):
            return torch.stack(columns, dim=1).cpu()
        logits = state.step(token)


def _num_prefix_tokens(sample: Sample, image_token_id: int) -> int:
    for position in range(len(sample.prompt_ids), 0, -1):
        if sample.prompt_ids[position - 1] == image_token_id:
            return position
    return 1  # without a picture, there is little to share


class _Branches:
    """One row a question in the cache of keys and values, and where each stands in it.

    Attributes of a row: `_used` keys so far, `_position` of its next token (text counts on from
    the picture's largest coordinate, so the two differ).
    """

    def __init__(self, model: PackedModel, *, num_rows: int, room: int) -> None:
        self._model = model
        self._num_rows, self._room = num_rows, room
        self._cache: Cache
        self._used: torch.Tensor
        self._position: torch.Tensor
        self._longest = 0

    def begin(
        self,
        samples: Sequence[Sample],
        num_tokens: Sequence[int],
        groups: Sequence[Sequence[int]],
    ) -> None:
        """Compute the beginnings, and give each to the rows of its group."""
        import torch

        from medvqa.fast.decoder import Cache, Segments, Write

        cut = [s.prompt_ids[:number] for s, number in zip(samples, num_tokens, strict=True)]
        packed = self._model.pack(samples, cut)
        device = packed.x.device
        self._cache = Cache(self._model.decoder, self._num_rows, self._room, packed.x)
        starts = [0, *accumulate(num_tokens)]
        group_of = {row: group for group, rows in enumerate(groups) for row in rows}
        order = torch.tensor([group_of[row] for row in range(self._num_rows)])
        source = [torch.arange(starts[g], starts[g + 1]) for g in order.tolist()]
        target = [torch.arange(len(own)) + row * self._room for row, own in enumerate(source)]
        write = Write(torch.cat(target).to(device), torch.cat(source).to(device))
        self._model.decoder.answer(packed, self._cache, Segments.of(num_tokens, device), write)
        own_positions = packed.positions.split_with_sizes(list(num_tokens), dim=1)
        next_position = torch.stack([own.max() + 1 for own in own_positions])
        self._used = torch.tensor(num_tokens)[order].to(device)
        self._position = next_position[order.to(device)]
        self._longest = max(num_tokens)

    def extend(self, rests: Sequence[Sequence[int]]) -> "torch.Tensor":
        """Feed the rest of each prompt; return the logits (B, V) of the first new token."""
        import torch

        device = self._used.device
        lengths = [len(rest) for rest in rests]
        ids = torch.tensor([token for rest in rests for token in rest]).to(device)
        row = torch.repeat_interleave(torch.arange(len(rests)), torch.tensor(lengths)).to(device)
        offset = torch.cat([torch.arange(length) for length in lengths]).to(device)
        last = torch.tensor(lengths).cumsum(0) - 1
        hidden = self._feed(ids, row, offset, lengths)
        return self._model.logits(hidden[last.to(device)])

    def step(self, tokens: "torch.Tensor") -> "torch.Tensor":
        """Feed one token a row; return the logits (B, V) of the next."""
        import torch

        row = torch.arange(len(tokens), device=tokens.device)
        hidden = self._feed(tokens, row, torch.zeros_like(row), [1] * len(tokens))
        return self._model.logits(hidden)

    def _feed(
        self,
        ids: "torch.Tensor",
        row: "torch.Tensor",
        offset: "torch.Tensor",
        lengths: Sequence[int],
    ) -> "torch.Tensor":
        import torch

        from medvqa.fast.decoder import Packed, Segments, Write

        device = ids.device
        positions = (self._position[row] + offset).expand(3, -1)
        target = row * self._room + self._used[row] + offset
        added = torch.tensor(lengths).to(device)
        self._used = self._used + added
        self._position = self._position + added
        self._longest += max(lengths)
        segments = replace(
            Segments.of(lengths, device),
            used=self._used.to(torch.int32),
            longest=self._longest,
            room=self._room,
        )
        packed = Packed(self._model.embed(ids), positions, lengths)
        return self._model.decoder.answer(packed, self._cache, segments, Write(target))
