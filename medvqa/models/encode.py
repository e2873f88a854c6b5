"""Messages and images -> tensors; labels only on the answer.

Shapes: B batch, T tokens, P image patches, D values of a patch.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from medvqa.config.errors import UserError
from medvqa.config.model import ModelConfig
from medvqa.data.example import Example, ImageSource
from medvqa.data.image import image_size, load_rgb
from medvqa.models.patches import Patches
from medvqa.models.prompt import user_message
from medvqa.models.sample import Sample, TokenCount

if TYPE_CHECKING:
    import torch

    from medvqa.models.loaded import LoadedModel

IGNORED = -100  # PyTorch's cross-entropy skips this label
MARKERS = 8  # more tokens than a chat template writes around a picture


class Encoder:
    """Turns examples into token ids and image patches, the same way for every user of the model.

    Each picture is decoded and cut into patches once while it stays in the cache.

    Args:
        processor: The model's.
        max_length_tokens: A longer sample is an error.
        patches: The cache; without it, one of the last 512 pictures.
        pixel_dtype: The vision tower's type. It casts to it in any case; done here, by threads,
            half as many bytes are cached and moved.
    """

    def __init__(
        self,
        processor: Any,
        *,
        max_length_tokens: int,
        patches: Patches | None = None,
        pixel_dtype: "torch.dtype | None" = None,
    ) -> None:
        self.processor = processor
        self.max_length_tokens = max_length_tokens
        self._patches = Patches(max_images=512) if patches is None else patches
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
        """Return the text that the model is given, with one marker per image."""
        text = self.processor.apply_chat_template(
            [user_message(question, num_images=num_images)],
            tokenize=False,
            add_generation_prompt=True,
        )
        return str(text)

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def count(self, example: Example) -> TokenCount:
        """Return how many tokens `encode` would give, without decoding a picture."""
        text = self.prompt(example.question, num_images=len(example.images))
        num_text = len(self._tokens(text)) + len(self._tokens(example.answers[0])) + 1
        # Each image's marker is in the prompt already, as one token that the patches replace.
        return TokenCount(num_text - len(example.images), self._count_images(example))

    def _count_images(self, example: Example) -> int:
        return sum(map(self._count_image, example.images, example.image_ids))

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
        rest = len(self._tokens(self.prompt("", num_images=0)))
        too_long = []
        for example in examples:
            num_bytes = len(f"{example.question}{example.answers[0]}".encode())
            num_image = self._count_images(example) + MARKERS * len(example.images)
            if rest + num_bytes + num_image + 1 > self.max_length_tokens:
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
        import torch

        text = self.prompt(example.question, num_images=len(example.images))
        patches = list(map(self._encode_image, example.images, example.image_ids))
        merge = self.processor.image_processor.merge_size**2
        # From the back, so that an expanded image does not shift the markers before it.
        pieces = text.split(self._image_token)
        for index, (_, grid) in enumerate(patches):
            pieces[index] += self._image_token * (int(grid.prod()) // merge)
        values = [values for values, _ in patches]
        sample = Sample(
            prompt_ids=tuple(self._tokens("".join(pieces))),
            # Tokenised apart, so that the boundary is where generation starts.
            answer_ids=(
                *self._tokens(example.answers[0]),
                self.processor.tokenizer.eos_token_id,
            ),
            # One picture per question is the rule, and needs no copy.
            pixel_values=torch.cat(values) if len(values) > 1 else next(iter(values), None),
            image_grid_thw=torch.stack([grid for _, grid in patches]) if patches else None,
            image_keys=tuple(map(_image_key, example.images, example.image_ids)),
        )
        if sample.num_tokens > self.max_length_tokens:
            raise UserError(
                f"{example.source}/{example.id}: {sample.num_tokens} tokens with its "
                f"{len(example.images)} image(s), but model.max_length_tokens="
                f"{self.max_length_tokens}; raise it or lower model.max_pixels"
            )
        return sample

    def _encode_image(
        self, image: ImageSource, image_id: str
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        key = _image_key(image, image_id)
        cached = self._patches.get(key)
        if cached is not None:
            values, grid = cached
            return values, grid
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
        for name in ("pixel_values", "image_grid_thw"):
            tensors = [getattr(sample, name) for sample in samples if sample.image_keys]
            if tensors:
                batch[name] = torch.cat(tensors)
        return batch


def encode_alone() -> Callable[[], None]:
    """Return what lets a thread that begins with it compute with PyTorch without helpers.

    Several threads encode already; helpers of each would keep the one that launches the GPU's work
    from its core. The calling thread keeps its own; threads that begin later have none either.
    """
    import torch

    torch.get_num_threads()  # a thread that never asked would take the new number, too
    return partial(torch.set_num_threads, 1)


def _image_key(image: ImageSource, image_id: str) -> str:
    return f"{image.name}:{image_id}"


def encoder_of(loaded: "LoadedModel", config: ModelConfig, patches: Patches | None) -> Encoder:
    """Return the encoder of a loaded model; `patches` outlive it where they are given."""
    return Encoder(
        loaded.processor,
        max_length_tokens=config.max_length_tokens,
        patches=patches,
        pixel_dtype=loaded.dtype,
    )
