"""Messages and images -> tensors; labels only on the answer.

The chat template writes the prompt (`medvqa.models.turn`), a family encodes the pictures
(`medvqa.models.families`). Shapes: B batch, T tokens, P image patches, D values of a patch.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from medvqa.config.errors import UserError, about
from medvqa.config.model import ModelConfig
from medvqa.config.prompt import PromptConfig
from medvqa.data.example import Example
from medvqa.data.image import image_size
from medvqa.models.families import processor as any_family
from medvqa.models.families import qwen
from medvqa.models.patches import Patches
from medvqa.models.prompt import DEFAULT, question_text
from medvqa.models.sample import Sample, TokenCount
from medvqa.models.turn import Template, Turn, tokenize

if TYPE_CHECKING:
    import torch

    from medvqa.models.loaded import LoadedModel

MARKERS = 8  # more tokens than a chat template writes around a picture


class Encoder:
    """Turns examples into token ids and pixels, the same way for every user of the model.

    Attributes:
        end_token_id: What ends an answer.
        encodes_batches: Whether pictures are encoded per batch, and not each one by itself.

    Args:
        processor: The model's.
        max_length_tokens: A longer sample is an error.
        patches: Qwen's cache of pictures; without it, one of the last 512 pictures.
        pixel_dtype: The vision tower's type. It casts to it in any case; done here, by threads,
            half as many bytes are cached and moved.
        prompt: What stands around each question.
    """

    def __init__(
        self,
        processor: Any,
        *,
        max_length_tokens: int,
        patches: Patches | None = None,
        pixel_dtype: "torch.dtype | None" = None,
        prompt: PromptConfig = DEFAULT,
    ) -> None:
        self.processor = processor
        self.max_length_tokens = max_length_tokens
        self.prompt_config = prompt
        self._template = Template(processor, prompt)
        self._sizes: dict[str, tuple[int, int]] = {}
        self._pictures: Any = (
            qwen.Grids(processor, patches, pixel_dtype)
            if type(processor).__name__ in qwen.PROCESSORS
            else any_family.Pictures(processor, pixel_dtype)
        )
        self.image_token_id: int = self._pictures.image_token_id
        self.image_token_ids: set[int] = self._pictures.image_token_ids
        self.end_token_id = self._template.end_token_id
        names = processor.tokenizer.convert_ids_to_tokens(sorted(self.image_token_ids))
        self._markers = {*names, getattr(processor, "image_token", names[0] if names else "")}
        self.encodes_batches = isinstance(self._pictures, any_family.Pictures)
        self._size_option = "model.image_options" if self.encodes_batches else "model.max_pixels"

    @property
    def pad_token_id(self) -> int:
        """Id that fills a batch; it is masked wherever it stands."""
        pad = self.processor.tokenizer.pad_token_id
        return int(self.end_token_id if pad is None else pad)

    def prompt(self, question: str, *, num_images: int) -> str:
        """Return the text that the model is given, with one marker per image."""
        return self._template.prompt(question, num_images=num_images)

    def _turn(self, example: Example) -> Turn:
        self._check_markers(example)
        num_images = len(example.images)
        with about(f"{example.source}/{example.id}"):
            return self._template.turn(
                question_text(example), example.answers[0], num_images=num_images
            )

    def _check_markers(self, example: Example) -> None:
        """Refuse a text that would stand for a picture which is not there."""
        for marker in filter(None, self._markers):
            if marker in example.question or marker in example.answers[0]:
                raise UserError(
                    f"{example.source}/{example.id}: the text contains {marker}, which stands for "
                    "a picture in this model's prompts; remove it from the row"
                )

    def count(self, example: Example) -> TokenCount:
        """Return how many tokens `encode` would give, without decoding a picture."""
        turn = self._turn(example)
        num_images = len(example.images)
        num_added = self._pictures.count(self._image_sizes(example), turn.prompt)
        # Each picture's marker is in the prompt already, as one token that others replace.
        num_text = len(turn.prompt_ids) + len(turn.answer_ids) - num_images
        return TokenCount(num_text, num_added + num_images)

    def _image_sizes(self, example: Example) -> list[tuple[int, int]]:
        sizes = []
        for image, image_id in zip(example.images, example.image_ids, strict=True):
            key = f"{image.name}:{image_id}"
            if key not in self._sizes:
                self._sizes[key] = image_size(image)
            sizes.append(self._sizes[key])
        return sizes

    def check_lengths(self, examples: Iterable[Example]) -> None:
        """Raise before the first step what `encode` would raise in the middle.

        Texts are tokenised only where a sample could be too long: a byte is a token at most.
        """
        prompt = cache(lambda num_images: self.prompt("", num_images=num_images))
        rest = len(tokenize(self.processor, prompt(0))) + MARKERS
        too_long = []
        for example in examples:
            self._check_markers(example)
            num_bytes = len(f"{question_text(example)}{example.answers[0]}".encode())
            sizes = self._image_sizes(example)
            num_added = self._pictures.count(sizes, prompt(len(sizes)))
            num_image = num_added + MARKERS * len(sizes)
            if rest + num_bytes + num_image > self.max_length_tokens:
                num_tokens = self.count(example).total
                if num_tokens > self.max_length_tokens:
                    too_long.append((num_tokens, f"{example.source}/{example.id}"))
        if too_long:
            most, longest = max(too_long)
            raise UserError(
                f"{len(too_long):,} samples are longer than model.max_length_tokens="
                f"{self.max_length_tokens}, the longest, {longest}, with {most:,} tokens; "
                f"raise it or lower {self._size_option}"
            )

    def encode(self, example: Example) -> Sample:
        """Return the example's tokens and pixels.

        Raises:
            UserError: If the sample is longer than the limit. It is never cut: that would drop
                image tokens or the answer. Or if the chat template hides the answer.
        """
        sample: Sample = self._pictures.encode(self._turn(example), example)
        if sample.num_tokens > self.max_length_tokens:
            raise UserError(
                f"{example.source}/{example.id}: {sample.num_tokens} tokens with its "
                f"{len(example.images)} image(s), but model.max_length_tokens="
                f"{self.max_length_tokens}; raise it or lower {self._size_option}"
            )
        return sample

    def encode_batch(
        self, examples: Sequence[Example], *, training: bool, size: int | None = None
    ) -> list[Sample]:
        """Return the examples' samples, whose coming batches are already encoded.

        Args:
            examples: Of one or more batches.
            training: Whether for training, with answers.
            size: Examples per batch; all together if None.
        """
        samples = [self.encode(example) for example in examples]
        if self.encodes_batches:
            step = size or len(samples)
            for start in range(0, len(samples), step):
                self._pictures.prepare(samples[start : start + step], training=training)
        return samples

    def training_batch(self, samples: Sequence[Sample]) -> "dict[str, torch.Tensor]":
        """Return right-padded tensors, (B, T), with pixels; labels on answers only."""
        batch: dict[str, torch.Tensor] = self._pictures.training_batch(samples)
        return batch

    def generation_batch(self, samples: Sequence[Sample]) -> "dict[str, torch.Tensor]":
        """Return left-padded prompts, (B, T) each: every answer starts at the same column."""
        batch: dict[str, torch.Tensor] = self._pictures.generation_batch(samples)
        return batch


def encode_alone() -> Callable[[], None]:
    """Return a thread's first call, by which it computes with PyTorch without helper threads.

    Several threads encode already. Helpers of each would take the core of the thread that launches
    the GPU's work. The calling thread keeps its helpers; threads that begin later have none either.
    """
    import torch

    torch.get_num_threads()  # a thread that never asked would take the new number, too
    return partial(torch.set_num_threads, 1)


def encoder_of(
    loaded: "LoadedModel",
    config: ModelConfig,
    patches: Patches | None,
    prompt: PromptConfig = DEFAULT,
) -> Encoder:
    """Return the encoder of a loaded model; `patches` outlive it where they are given."""
    return Encoder(
        loaded.processor,
        max_length_tokens=config.max_length_tokens,
        patches=patches,
        pixel_dtype=loaded.dtype,
        prompt=prompt,
    )
