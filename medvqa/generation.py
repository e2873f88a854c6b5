"""Batched greedy decoding; questions about one picture share its part of the prompt."""

import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from medvqa.ahead import ahead
from medvqa.collate import Encoder, Sample
from medvqa.config import Backend, Decoding
from medvqa.engine import shared_features
from medvqa.example import Example
from medvqa.model import LoadedModel
from medvqa.progress import track

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

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
    decode = shared_prefix if chosen is Decoding.shared_prefix else plain
    tokenizer = encoder.processor.tokenizer
    texts = [""] * len(examples)
    cut, num_tokens = [False] * len(examples), [0] * len(examples)
    # Pictures first, so that their questions meet in a batch; the most pictures come first, so
    # that a batch that does not fit into memory fails at the start.
    order = sorted(
        range(len(examples)),
        key=lambda i: (-len(examples[i].images), _pictures(examples[i]), i),
    )
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    loaded.use_for(training=False)
    threads = ENCODING_THREADS if loaded.device.type == "cuda" else 0
    encoded = ahead(
        lambda batch: [encoder.encode(examples[i]) for i in batch], batches, num_threads=threads
    )
    with torch.inference_mode(), loaded.autocast(), closing(encoded):
        for indices in track(batches, description=description):
            samples = next(encoded)
            new = _within_memory(decode, loaded, encoder, samples, max_new_tokens)
            endless = (new != tokenizer.eos_token_id).all(dim=1).tolist()
            ended = _ended(new, tokenizer)
            decoded = tokenizer.batch_decode(ended, skip_special_tokens=True)
            for index, text, is_cut, row in zip(indices, decoded, endless, ended, strict=True):
                texts[index], cut[index] = text.strip(), is_cut
                num_tokens[index] = len(row) + (not is_cut)
    return Answers(tuple(texts), tuple(cut), tuple(num_tokens), chosen.value)


def chosen_decoding(wanted: Decoding, loaded: LoadedModel) -> Decoding:
    """Return what `auto` stands for: Unsloth's kernels expect transformers' own loop."""
    if loaded.backend is Backend.unsloth:
        return Decoding.plain
    return Decoding.shared_prefix if wanted is Decoding.auto else wanted


def _pictures(example: Example) -> tuple[str, ...]:
    return tuple(image.name for image in example.images)


def _ended(new: "torch.Tensor", tokenizer: Any) -> "list[torch.Tensor]":
    """Cut each answer behind its first end token."""
    ends = (new == tokenizer.eos_token_id).int()
    return [
        row[: int(end.argmax())] if end.any() else row for row, end in zip(new, ends, strict=True)
    ]


def _within_memory(
    decode: Any,
    loaded: LoadedModel,
    encoder: Encoder,
    samples: Sequence[Sample],
    max_new_tokens: int,
) -> "torch.Tensor":
    """Decode; where memory runs out, decode the halves."""
    import torch

    try:
        result: torch.Tensor = decode(loaded, encoder, samples, max_new_tokens)
        return result
    except torch.OutOfMemoryError:
        if len(samples) == 1:
            raise
        log.warning("out of memory with %d questions at once: half of them", len(samples))
    torch.cuda.empty_cache()
    middle = len(samples) // 2
    halves = [
        _within_memory(decode, loaded, encoder, part, max_new_tokens)
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
    loaded: LoadedModel, encoder: Encoder, samples: Sequence[Sample], max_new_tokens: int
) -> "torch.Tensor":
    """Return new tokens (B, N) on the CPU; equal beginnings of prompts are computed once.

    The beginning ends with the last image token: questions about one picture differ behind it.
    Columns are [padding | beginning | padding | rest], the padding masked, positions explicit.
    """
    import torch

    splits = [_num_prefix_tokens(sample, encoder.image_token_id) for sample in samples]
    keys = [
        (sample.image_keys, sample.prompt_ids[:split])
        for sample, split in zip(samples, splits, strict=True)
    ]
    groups = [list(members) for _, members in groupby(range(len(samples)), keys.__getitem__)]
    rests = [sample.prompt_ids[split:] for sample, split in zip(samples, splits, strict=True)]
    state = _Decoder(loaded, encoder)
    state.begin([_cut(samples[group[0]], splits[group[0]]) for group in groups])
    state.branch([number for number, group in enumerate(groups) for _ in group])
    logits = state.extend(rests)
    end = encoder.processor.tokenizer.eos_token_id
    columns: list[torch.Tensor] = []
    finished = torch.zeros(len(samples), dtype=torch.bool, device=loaded.device)
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


def _cut(sample: Sample, num_tokens: int) -> Sample:
    return Sample(
        prompt_ids=sample.prompt_ids[:num_tokens],
        answer_ids=(),
        pixel_values=sample.pixel_values,
        image_grid_thw=sample.image_grid_thw,
        image_keys=sample.image_keys,
    )


class _Decoder:
    """The cache of keys and values, and where each row stands in it."""

    def __init__(self, loaded: LoadedModel, encoder: Encoder) -> None:
        self._loaded = loaded
        self._encoder = encoder
        self._inner = loaded.inner
        self._cache: Any = None
        self._mask: torch.Tensor  # (B, columns so far)
        self._position: torch.Tensor  # (B, 1), of the next token

    def begin(self, samples: Sequence[Sample]) -> None:
        """Compute the beginnings."""
        batch = self._encoder.generation_batch(samples)
        positions, _ = self._inner.model.get_rope_index(
            batch["input_ids"],
            mm_token_type_ids=batch["mm_token_type_ids"],
            image_grid_thw=batch.get("image_grid_thw"),
            attention_mask=batch["attention_mask"],
        )
        device = self._loaded.device
        features = shared_features(self._loaded)
        if features is not None and "pixel_values" in batch:
            keys = [key for sample in samples for key in sample.image_keys]
            features.provide(keys, batch["pixel_values"], batch["image_grid_thw"])
            batch["pixel_values"] = batch["pixel_values"][:0]  # the features stand for them
        inputs = {name: tensor.to(device) for name, tensor in batch.items()}
        output = self._inner.model(**inputs, position_ids=positions.to(device), use_cache=True)
        self._cache = output.past_key_values
        self._mask = inputs["attention_mask"]
        self._position = (positions.amax(dim=(0, 2)) + 1).unsqueeze(1).to(device)

    def branch(self, rows: Sequence[int]) -> None:
        """Repeat the beginnings, one for each question."""
        import torch

        index = torch.tensor(rows, device=self._loaded.device)
        if len(rows) > len(self._mask):
            self._cache.batch_select_indices(index)
        self._mask, self._position = self._mask[index], self._position[index]

    def extend(self, rests: Sequence[Sequence[int]]) -> "torch.Tensor":
        """Feed the rest of each prompt; return the logits (B, V) of the first new token."""
        import torch

        width = max(map(len, rests))
        pad = self._encoder.pad_token_id
        ids = torch.tensor([[pad] * (width - len(rest)) + list(rest) for rest in rests])
        mask = torch.tensor([[0] * (width - len(rest)) + [1] * len(rest) for rest in rests])
        mask = mask.to(self._loaded.device)
        steps = (mask.cumsum(dim=1) - 1).clamp(min=0)
        positions = self._position + steps
        self._position = self._position + mask.sum(dim=1, keepdim=True)
        return self._forward(ids.to(self._loaded.device), mask, positions)

    def step(self, tokens: "torch.Tensor") -> "torch.Tensor":
        """Feed one token a row; return the logits (B, V) of the next."""
        positions = self._position
        self._position = positions + 1
        return self._forward(tokens.unsqueeze(1), self._mask.new_ones(len(tokens), 1), positions)

    def _forward(
        self, ids: "torch.Tensor", mask: "torch.Tensor", positions: "torch.Tensor"
    ) -> "torch.Tensor":
        import torch

        self._mask = torch.cat([self._mask, mask], dim=1)
        output = self._inner.model.language_model(
            inputs_embeds=self._inner.get_input_embeddings()(ids),
            attention_mask=self._mask,
            position_ids=positions.unsqueeze(0).expand(3, -1, -1),
            past_key_values=self._cache,
            use_cache=True,
        )
        logits: torch.Tensor = self._inner.lm_head(output.last_hidden_state[:, -1])
        return logits
