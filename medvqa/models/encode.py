"""Messages and images -> tensors; labels only on the answer.

Shapes: B batch, T tokens, P image patches, D values of a patch.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from medvqa.config.errors import UserError
from medvqa.data.example import Example, ImageSource
from medvqa.data.image import image_size, load_rgb
from medvqa.models.prompt import user_message

if TYPE_CHECKING:
    import torch

IGNORED = -100  # PyTorch's cross-entropy skips this label
MARKERS = 8  # more tokens than a chat template writes around a picture


@dataclass(frozen=True)
class Sample:
    """One encoded example, not yet padded.

    Attributes:
        prompt_ids: Token ids up to and with the header of the assistant's turn.
        answer_ids: Token ids of the answer and the end of the turn.
        pixel_values: (P, D) patches of all images in order.
        image_grid_thw: (images, 3) patches in time, height, width.
        image_keys: One an image; equal keys mean equal patches.
    """

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    pixel_values: "torch.Tensor | None"
    image_grid_thw: "torch.Tensor | None"
    image_keys: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and answer, image tokens included."""
        return len(self.prompt_ids) + len(self.answer_ids)


class TokenCount(NamedTuple):
    """Tokens of one sample: those of prompt and answer, and those of its images."""

    text: int
    image: int

    @property
    def total(self) -> int:
        """What `model.max_length_tokens` limits."""
        return self.text + self.image


class Patches:
    """Keeps the patches and grids of the last pictures; threads may share it.

    All are of one processor with one pixel budget. A data set asks about seven questions an
    image, and the cells of a grid ask the same ones again.
    """

    def __init__(self, *, max_images: float = math.inf, max_bytes: float = math.inf) -> None:
        self._max_images = max_images
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, tuple[torch.Tensor, torch.Tensor]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Host memory that the patches take."""
        return self._bytes

    def clear(self) -> None:
        """Forget all pictures."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def get(self, key: str) -> "tuple[torch.Tensor, torch.Tensor] | None":
        """Return patches (P, D) and grid (3,), or None."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def keep(self, key: str, values: "torch.Tensor", grid: "torch.Tensor") -> None:
        """Keep a picture, and forget those that were asked for the longest time ago."""
        with self._lock:
            if key in self._kept:  # two threads came to it at once
                return
            self._kept[key] = values, grid
            self._bytes += values.nbytes
            while len(self._kept) > self._max_images or self._bytes > self._max_bytes:
                _, (oldest, _) = self._kept.popitem(last=False)
                self._bytes -= oldest.nbytes


class Encoder:
    """Turns examples into token ids and image patches, the same way for every user of the model.

    Each picture is decoded and cut into patches once while it stays among the last
    `max_cached_images`, or, where `patches` outlive this encoder, in those.

    Args:
        processor: The model's.
        max_length_tokens: A longer sample is an error.
        max_cached_images: How many pictures are kept.
        patches: Where they are kept instead.
        pixel_dtype: The vision tower's type. It casts to it in any case; done here, by threads,
            half as many bytes are kept and moved.
    """

    def __init__(
        self,
        processor: Any,
        *,
        max_length_tokens: int,
        max_cached_images: int = 512,
        patches: Patches | None = None,
        pixel_dtype: "torch.dtype | None" = None,
    ) -> None:
        self.processor = processor
        self.max_length_tokens = max_length_tokens
        self._patches = Patches(max_images=max_cached_images) if patches is None else patches
        self._pixel_dtype = pixel_dtype
        self._image_tokens: dict[str, int] = {}
        self._image_token = processor.image_token
        self.image_token_id: int = processor.image_token_id

    @property
    def pad_token_id(self) -> int:
        """Id that fills a batch; it is masked wherever it stands."""
        tokenizer = self.processor.tokenizer
        pad = tokenizer.pad_token_id
        return int(tokenizer.eos_token_id if pad is None else pad)

    def prompt(self, question: str, *, num_images: int) -> str:
        """Return the text that the model is given, with one marker an image."""
        text = self.processor.apply_chat_template(
            [user_message(question, num_images=num_images)],
            tokenize=False,
            add_generation_prompt=True,
        )
        return str(text)

    def count(self, example: Example) -> TokenCount:
        """Return how many tokens `encode` would give, without decoding a picture."""
        text = self.prompt(example.question, num_images=len(example.images))
        tokenizer = self.processor.tokenizer
        num_prompt = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        num_answer = len(tokenizer(example.answers[0], add_special_tokens=False)["input_ids"]) + 1
        num_image = self._count_images(example)
        # Each image's marker is in the prompt already, as one token that the patches replace.
        return TokenCount(num_prompt + num_answer - len(example.images), num_image)

    def _count_images(self, example: Example) -> int:
        pairs = zip(example.images, example.image_ids, strict=True)
        return sum(self._count_image(image, image_id) for image, image_id in pairs)

    def _count_image(self, image: ImageSource, image_id: str) -> int:
        key = _image_key(image, image_id)
        if key not in self._image_tokens:
            width, height = image_size(image)
            processor = self.processor.image_processor
            num_patches = processor.get_number_of_image_patches(height, width)
            self._image_tokens[key] = int(num_patches) // processor.merge_size**2
        return self._image_tokens[key]

    def check_lengths(self, examples: Iterable[Example]) -> None:
        """Raise before the first step what `encode` would raise in the middle.

        Texts are tokenised only where a sample could be too long: a byte is a token at most.
        """
        template = self.prompt("", num_images=0)
        rest = len(self.processor.tokenizer(template, add_special_tokens=False)["input_ids"])
        too_long = []
        for example in examples:
            num_bytes = len(f"{example.question}{example.answers[0]}".encode())
            num_image = self._count_images(example) + MARKERS * len(example.images)
            bound = rest + num_bytes + num_image + 1
            if bound > self.max_length_tokens:
                num_tokens = self.count(example).total
                if num_tokens > self.max_length_tokens:
                    too_long.append((num_tokens, f"{example.source}/{example.id}"))
        if too_long:
            most, longest = max(too_long)
            raise UserError(
                f"{len(too_long):,} samples are longer than model.max_length_tokens="
                f"{self.max_length_tokens}, the longest, {longest}, with {most:,} tokens; "
                "raise it or lower model.max_pixels"
            )

    def encode(self, example: Example) -> Sample:
        """Return the example's tokens and patches.

        Raises:
            UserError: If the sample is longer than the limit. It is never cut: that would drop
                image tokens or the answer.
        """
        sample = self._encode(example)
        if sample.num_tokens > self.max_length_tokens:
            raise UserError(
                f"{example.source}/{example.id}: {sample.num_tokens} tokens with its "
                f"{len(example.images)} image(s), but model.max_length_tokens="
                f"{self.max_length_tokens}; raise it or lower model.max_pixels"
            )
        return sample

    def _encode(self, example: Example) -> Sample:
        import torch

        text = self.prompt(example.question, num_images=len(example.images))
        patches = [
            self._encode_image(image, image_id)
            for image, image_id in zip(example.images, example.image_ids, strict=True)
        ]
        merge = self.processor.image_processor.merge_size**2
        # From the back, so that an expanded image does not shift the markers before it.
        pieces = text.split(self._image_token)
        for index, (_, grid) in enumerate(patches):
            pieces[index] += self._image_token * (int(grid.prod()) // merge)
        tokenizer = self.processor.tokenizer
        prompt_ids = tokenizer("".join(pieces), add_special_tokens=False)["input_ids"]
        # Tokenised apart, so that the boundary is where generation starts.
        answer = tokenizer(example.answers[0], add_special_tokens=False)["input_ids"]
        return Sample(
            prompt_ids=tuple(prompt_ids),
            answer_ids=(*answer, tokenizer.eos_token_id),
            pixel_values=_joined([values for values, _ in patches]),
            image_grid_thw=torch.stack([grid for _, grid in patches]) if patches else None,
            image_keys=tuple(map(_image_key, example.images, example.image_ids)),
        )

    def _encode_image(
        self, image: ImageSource, image_id: str
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        key = _image_key(image, image_id)
        found = self._patches.get(key)
        if found is not None:
            return found
        encoded = self.processor.image_processor(images=[load_rgb(image)], return_tensors="pt")
        values, grid = encoded["pixel_values"], encoded["image_grid_thw"][0]
        values = values.to(self._pixel_dtype or values.dtype)
        self._patches.keep(key, values, grid)
        return values, grid

    def training_batch(self, samples: Sequence[Sample]) -> "dict[str, torch.Tensor]":
        """Return right-padded tensors, (B, T) and patches (P, D); labels on answers only."""
        rows = [sample.prompt_ids + sample.answer_ids for sample in samples]
        batch = self._batch(samples, rows, pad_left=False)
        labels = batch["input_ids"].new_full(batch["input_ids"].shape, IGNORED)
        for label, sample, row in zip(labels, samples, rows, strict=True):
            label[len(sample.prompt_ids) : len(row)] = label.new_tensor(sample.answer_ids)
        return {**batch, "labels": labels}

    def generation_batch(self, samples: Sequence[Sample]) -> "dict[str, torch.Tensor]":
        """Return left-padded prompts, (B, T) each: every answer starts at the same column."""
        return self._batch(samples, [sample.prompt_ids for sample in samples], pad_left=True)

    def _batch(
        self, samples: Sequence[Sample], rows: Sequence[tuple[int, ...]], *, pad_left: bool
    ) -> "dict[str, torch.Tensor]":
        import torch

        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), self.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            start = width - len(row) if pad_left else 0
            ids[index, start : start + len(row)] = torch.tensor(row)
            mask[index, start : start + len(row)] = 1
        batch = {
            "input_ids": ids,
            "attention_mask": mask,
            # 1 on image tokens; the model derives its three-dimensional rotary positions from it.
            "mm_token_type_ids": (ids == self.image_token_id).long(),
        }
        patches = [sample.pixel_values for sample in samples if sample.pixel_values is not None]
        grids = [sample.image_grid_thw for sample in samples if sample.image_grid_thw is not None]
        if patches:
            batch["pixel_values"] = torch.cat(patches)
            batch["image_grid_thw"] = torch.cat(grids)
        return batch


def encode_alone() -> Callable[[], None]:
    """Return what lets a thread that begins with it compute with PyTorch without helpers.

    Several threads encode already; helpers of each would keep the one that launches the GPU's work
    from its core. The calling thread keeps its own; threads that begin later have none either.
    """
    import torch

    torch.get_num_threads()  # a thread that never asked would take the new number, too
    return partial(torch.set_num_threads, 1)


def _joined(patches: "Sequence[torch.Tensor]") -> "torch.Tensor | None":
    import torch

    if len(patches) < 2:  # one picture a question is the rule: no copy
        return patches[0] if patches else None
    return torch.cat(list(patches))


def _image_key(image: ImageSource, image_id: str) -> str:
    return f"{image.name}:{image_id}"


def preview(encoder: Encoder, sample: Sample) -> str:
    """Return one sample as text: image tokens counted, the supervised answer between [[ and ]]."""
    tokenizer = encoder.processor.tokenizer
    parts: list[str] = []
    run: list[int] = []
    num_image_tokens = 0
    for token in [*sample.prompt_ids, -1]:
        if token == encoder.image_token_id:
            num_image_tokens += 1
            continue
        if num_image_tokens:
            parts += [tokenizer.decode(run), f"<{num_image_tokens} image tokens>"]
            run, num_image_tokens = [], 0
        run.append(token)
    parts.append(tokenizer.decode(run[:-1]))
    return "".join(parts) + f"[[{tokenizer.decode(list(sample.answer_ids))}]]"
