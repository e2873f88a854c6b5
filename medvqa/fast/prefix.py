"""Greedy decoding that computes equal beginnings of prompts once.

Questions about one picture share its part of the prompt, up to the last image token. B is the
number of questions, N tokens that are fed at once, V the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, groupby

import torch

from medvqa.fast.attention import Segments
from medvqa.fast.decoder import Cache, Packed, Write
from medvqa.fast.packing import PackedModel
from medvqa.models.sample import Decoded, Sample


def answer(
    engine: PackedModel, samples: Sequence[Sample], max_new_tokens: int, end_token_id: int
) -> Decoded:
    """Return up to `max_new_tokens` new tokens per sample, with their log-probabilities."""
    branches = Branches(engine, samples, num_more=max_new_tokens)
    logits = branches.extend()
    columns: list[torch.Tensor] = []
    chances: list[torch.Tensor] = []
    logprobs = first = logits.float().log_softmax(dim=-1)
    finished = torch.zeros(len(samples), dtype=torch.bool, device=logits.device)
    while True:
        token = logits.argmax(dim=-1).masked_fill(finished, end_token_id)
        columns.append(token)
        chances.append(logprobs.gather(1, token[:, None])[:, 0].masked_fill(finished, 0.0))
        finished = finished | (token == end_token_id)
        if len(columns) == max_new_tokens or bool(finished.all()):
            stacked = torch.stack(columns, dim=1).cpu(), torch.stack(chances, dim=1).cpu()
            return Decoded(*stacked, first)
        logits = branches.step(token)
        logprobs = logits.float().log_softmax(dim=-1)


def log_probabilities(engine: PackedModel, samples: Sequence[Sample]) -> list[list[float]]:
    """Return the log-probability of each answer token, the end of the turn included."""
    longest = max(len(sample.answer_ids) for sample in samples)
    branches = Branches(engine, samples, num_more=longest)
    fed = [rest + s.answer_ids[:-1] for rest, s in zip(branches.rests, samples, strict=True)]
    hidden = branches.feed(fed)
    ends = accumulate(map(len, fed))
    rows = [
        torch.arange(end - len(sample.answer_ids), end)
        for sample, end in zip(samples, ends, strict=True)
    ]
    logits = engine.logits(hidden[torch.cat(rows).to(hidden.device)])
    targets = torch.tensor([token for sample in samples for token in sample.answer_ids])
    chosen = logits.float().log_softmax(-1).gather(1, targets.to(logits.device)[:, None])[:, 0]
    values = iter(chosen.tolist())
    return [[next(values) for _ in sample.answer_ids] for sample in samples]


def _num_prefix_tokens(sample: Sample, image_token_id: int) -> int:
    for position in range(len(sample.prompt_ids), 0, -1):
        if sample.prompt_ids[position - 1] == image_token_id:
            return position
    return 1  # without a picture, there is little to share


class Branches:
    """One row per question in the cache of keys and values, and where each row stands.

    Per row, `_used` counts keys and `_position` is that of its next token. Text counts on from
    the picture's largest coordinate, so the two differ.

    Args:
        engine: With the model's weights.
        samples: Neighbours with equal pictures share a beginning.
        num_more: Tokens per row that may follow the prompt.

    Attributes:
        rests: What follows the beginning of each prompt.
    """

    def __init__(self, engine: PackedModel, samples: Sequence[Sample], *, num_more: int) -> None:
        self._engine = engine
        self._room = max(len(sample.prompt_ids) for sample in samples) + num_more
        self.begin(samples)

    def begin(self, samples: Sequence[Sample]) -> None:
        """Compute each beginning once, and give it to the rows that share it."""
        splits = [_num_prefix_tokens(sample, self._engine.image_token_id) for sample in samples]
        both = list(zip(samples, splits, strict=True))
        self.rests = [sample.prompt_ids[split:] for sample, split in both]
        prefixes = [sample.prompt_ids[:split] for sample, split in both]
        keys = [(s.image_keys, prefix) for s, prefix in zip(samples, prefixes, strict=True)]
        groups = [list(rows) for _, rows in groupby(range(len(samples)), keys.__getitem__)]
        first_rows = [rows[0] for rows in groups]
        num_tokens = [splits[row] for row in first_rows]
        packed = self._engine.pack(
            [samples[row] for row in first_rows], [prefixes[row] for row in first_rows]
        )
        device = packed.x.device
        self._cache = Cache(self._engine.decoder, len(samples), self._room, packed.x)
        starts = [0, *accumulate(num_tokens)]
        order = torch.tensor([group for group, rows in enumerate(groups) for _ in rows])
        source = [torch.arange(starts[g], starts[g + 1]) for g in order.tolist()]
        target = [torch.arange(len(own)) + row * self._room for row, own in enumerate(source)]
        write = Write(torch.cat(target).to(device), torch.cat(source).to(device))
        self._engine.decoder.answer(packed, self._cache, Segments.of(num_tokens, device), write)
        own_positions = packed.positions.split_with_sizes(num_tokens, dim=1)
        next_position = torch.stack([own.max() + 1 for own in own_positions])
        self._used = torch.tensor(num_tokens)[order].to(device)
        self._position = next_position[order.to(device)]
        self._longest = max(num_tokens)

    def extend(self) -> torch.Tensor:
        """Feed the rest of each prompt; return the logits (B, V) of the first new token."""
        last = torch.tensor(list(map(len, self.rests))).cumsum(0) - 1
        return self._engine.logits(self.feed(self.rests)[last.to(self._used.device)])

    def feed(self, rests: Sequence[Sequence[int]]) -> torch.Tensor:
        """Feed more tokens to each row; return the last layer's result (N, H) of all of them."""
        device = self._used.device
        lengths = [len(rest) for rest in rests]
        ids = torch.tensor([token for rest in rests for token in rest]).to(device)
        row = torch.repeat_interleave(torch.arange(len(rests)), torch.tensor(lengths)).to(device)
        offset = torch.cat([torch.arange(length) for length in lengths]).to(device)
        return self._feed(ids, row, offset, lengths)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Feed one token per row; return the logits (B, V) of the next."""
        row = torch.arange(len(tokens), device=tokens.device)
        hidden = self._feed(tokens, row, torch.zeros_like(row), [1] * len(tokens))
        return self._engine.logits(hidden)

    def _feed(
        self,
        ids: torch.Tensor,
        row: torch.Tensor,
        offset: torch.Tensor,
        lengths: Sequence[int],
    ) -> torch.Tensor:
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
        packed = Packed(self._engine.embed(ids), positions, lengths)
        return self._engine.decoder.answer(packed, self._cache, segments, Write(target))
