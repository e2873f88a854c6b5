"""Pictures of any family, encoded by its own processor, which is called once per batch.

Some processors pad a picture's tiles across the batch, others concatenate them, so samples cannot
be encoded alone and joined. Shapes: B batch, T tokens.
"""

import copy
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

from medvqa.config.errors import UserError
from medvqa.config.model import ModelConfig
from medvqa.data.example import Example
from medvqa.data.image import load_rgb
from medvqa.models.sample import IGNORED, Sample
from medvqa.models.turn import Turn, special_tokens, tokenize

if TYPE_CHECKING:
    import torch
    from PIL import Image

IMAGE_TOKEN = "image_token_id"
# How image processors call what decides on a picture's tokens.
SIZE_OPTIONS = (
    *("size", "crop_size", "max_image_size", "do_image_splitting", "image_grid_pinpoints"),
    *("crop_to_patches", "min_patches", "max_patches", "do_pan_and_scan"),
    *("pan_and_scan_min_crop_size", "pan_and_scan_max_num_crops"),
    "pan_and_scan_min_ratio_to_activate",
)

SHARED_OPTIONS = {"image_grid_pinpoints"}  # the model's configuration repeats them


@dataclass(frozen=True, kw_only=True)
class PictureSample(Sample):
    """A sample whose pictures await their batch; `prompt_ids` have one marker per picture.

    Attributes:
        turn: Question and answer as text.
        pictures: Decoded.
        num_added_tokens: By which the processor lengthens the prompt for the pictures.
        prepared: The batch that the sample begins, where a thread has encoded it already.
    """

    turn: Turn
    pictures: "tuple[Image.Image, ...]"
    num_added_tokens: int
    prepared: list[Any] = field(default_factory=list, compare=False, repr=False)

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and answer, image tokens included."""
        return super().num_tokens + self.num_added_tokens


class Pictures:
    """Encodes pictures for `medvqa.models.encode.Encoder`; see there for the arguments."""

    def __init__(self, processor: Any, pixel_dtype: "torch.dtype | None") -> None:
        self.processor = processor
        self._pixel_dtype = pixel_dtype
        self._kinds: dict[tuple[tuple[int, int], ...], tuple[Any, ...]] = {}
        self._added: dict[tuple[Any, ...], int] = {}
        self._lock = Lock()
        self._padding: dict[str, Any] = {}
        token_ids = (*processor.image_token_ids, getattr(processor.tokenizer, IMAGE_TOKEN, None))
        self.image_token_ids = {int(token) for token in token_ids if token is not None}
        self.image_token_id = min(self.image_token_ids, default=-1)
        # A processor's own defaults would win over these settings of its image processor.
        defaults = processor._merge_kwargs(processor.valid_processor_kwargs)["images_kwargs"]
        settings = {name: getattr(processor.image_processor, name, None) for name in SIZE_OPTIONS}
        self._settings = {
            name: value
            for name, value in settings.items()
            if name in defaults and value is not None
        }

    def count(self, sizes: Sequence[tuple[int, int]], text: str) -> int:
        """Return by how many tokens pictures of these widths and heights lengthen the prompt.

        Blank pictures are encoded, once for all sizes that become equally many image tokens.
        """
        from PIL import Image

        key = tuple(sizes)
        if not key:
            return 0
        if key not in self._kinds:
            self._kinds[key] = self._kind(key)
        kind = self._kinds[key]
        if kind not in self._added:
            blank = tuple(Image.new("RGB", size) for size in sizes)
            num_tokens = int(self._call([text], [blank], "right")["input_ids"].shape[1])
            self._added[kind] = num_tokens - len(tokenize(self.processor, text))
        return self._added[kind]

    def _kind(self, sizes: tuple[tuple[int, int], ...]) -> tuple[Any, ...]:
        """Return each picture's number of image tokens, or the sizes where nobody knows it."""
        count = getattr(self.processor, "_get_num_multimodal_tokens", None)
        # Gemma 3's count leaves out the crops.
        if count is None or getattr(self.processor.image_processor, "do_pan_and_scan", False):
            return sizes
        numbers = count(image_sizes=[(h, w) for w, h in sizes], **self._settings)
        return ("image tokens", *numbers["num_image_tokens"])

    def encode(self, turn: Turn, example: Example) -> PictureSample:
        """Return the sample of a rendered example."""
        pictures = tuple(map(load_rgb, example.images))
        return PictureSample(
            prompt_ids=turn.prompt_ids,
            answer_ids=turn.answer_ids,
            pixel_values=None,
            image_grid_thw=None,
            turn=turn,
            pictures=pictures,
            num_added_tokens=self.count([picture.size for picture in pictures], turn.prompt),
        )

    def prepare(self, samples: Sequence[Any], *, training: bool) -> None:
        """Encode a batch that will be asked for; threads do so while the GPU computes."""
        make = self._training_batch if training else self._generation_batch
        first, *others = samples
        first.prepared.append((training, others, make(samples)))

    def training_batch(self, samples: Sequence[Any]) -> "dict[str, torch.Tensor]":
        """Return right-padded tensors (B, T) with labels on answers only."""
        return _prepared(samples, training=True) or self._training_batch(samples)

    def generation_batch(self, samples: Sequence[Any]) -> "dict[str, torch.Tensor]":
        """Return left-padded prompts, (B, T) each: every answer starts at the same column."""
        return _prepared(samples, training=False) or self._generation_batch(samples)

    def _training_batch(self, samples: Sequence[Any]) -> "dict[str, torch.Tensor]":
        texts = [sample.turn.prompt + sample.turn.answer for sample in samples]
        batch = self._call(texts, [sample.pictures for sample in samples], "right")
        labels = batch["input_ids"].new_full(batch["input_ids"].shape, IGNORED)
        ends = batch["attention_mask"].sum(dim=1).tolist()
        for label, row, end, sample in zip(labels, batch["input_ids"], ends, samples, strict=True):
            start = end - len(sample.answer_ids)
            label[start:end] = row[start:end]
            if tuple(label[start:end].tolist()) != sample.answer_ids:
                raise UserError(
                    f"the model's processor tokenises {sample.turn.answer!r} differently behind "
                    "pictures: its answers cannot be separated from its prompts"
                )
        return {**batch, "labels": labels}

    def _generation_batch(self, samples: Sequence[Any]) -> "dict[str, torch.Tensor]":
        texts = [sample.turn.prompt for sample in samples]
        return self._call(texts, [sample.pictures for sample in samples], "left")

    def _call(
        self, texts: list[str], pictures: "Sequence[tuple[Image.Image, ...]]", side: str
    ) -> "dict[str, torch.Tensor]":
        batch = self._padding_processor(side)(
            text=texts,
            images=[list(own) for own in pictures] if any(pictures) else None,
            padding=True,
            padding_side=side,
            return_tensors="pt",
            **special_tokens(self.processor, texts[0]),
            **self._settings,
        )
        return {
            name: tensor.to(self._pixel_dtype or tensor.dtype)
            if tensor.is_floating_point()
            else tensor
            for name, tensor in batch.items()
        }

    def _padding_processor(self, side: str) -> Any:
        """Return the processor with a tokenizer that always pads on this side.

        Threads share it: a tokenizer that changes its padding while another thread uses it fails.
        """
        with self._lock:
            if side not in self._padding:
                processor = copy.copy(self.processor)
                processor.tokenizer = copy.deepcopy(self.processor.tokenizer)
                processor.tokenizer("a", padding=True, padding_side=side)
                self._padding[side] = processor
            return self._padding[side]


def _prepared(samples: Sequence[Any], *, training: bool) -> "dict[str, torch.Tensor] | None":
    """Return the batch that was prepared of exactly these samples, once."""
    first, *others = samples
    ready = first.prepared.pop() if first.prepared else (None, [], None)
    same = len(ready[1]) == len(others) and all(map(operator.is_, ready[1], others))
    batch: dict[str, torch.Tensor] | None = ready[2] if ready[0] is training and same else None
    return batch


def set_image_options(processor: Any, config: ModelConfig) -> None:
    """Set the family's own size options.

    Raises:
        UserError: If one cannot be set; the message names those that can.
    """
    images = processor.image_processor
    known = [name for name in SIZE_OPTIONS if getattr(images, name, None) is not None]
    known += [name for name in images.valid_kwargs.__annotations__ if name in SIZE_OPTIONS]
    choices = ", ".join(sorted(set(known)))
    family = type(images).__name__.removesuffix("Fast")
    if config.max_pixels is not None or config.min_pixels != ModelConfig.min_pixels:
        raise UserError(
            f"model.min_pixels and model.max_pixels cannot be set for {family}; "
            f"model.image_options can set {choices or 'nothing'}"
        )
    for name, value in config.image_options.items():
        if name not in known:
            raise UserError(
                f"model.image_options.{name} cannot be set for {family}; "
                f"what can: {choices or 'nothing'}"
            )
        setattr(images, name, _converted(getattr(images, name, None), name, value))


def tell_model(base: Any, config: ModelConfig) -> None:
    """Give the model those size options that its processor shares with it."""
    for name in SHARED_OPTIONS & config.image_options.keys():
        setattr(base.config, name, config.image_options[name])


def _converted(present: Any, name: str, value: Any) -> Any:
    """Return a size in the processor's own type; its keys must be those that it has."""
    if name not in ("size", "crop_size", "max_image_size"):
        return value
    keys = [key for key, number in dict(present or {}).items() if number is not None]
    if not isinstance(value, dict) or (keys and set(value) - set(keys)):
        raise UserError(
            f"model.image_options.{name} must be a mapping with {', '.join(keys)}, got {value}"
        )
    return type(present)(**{**{key: present[key] for key in keys}, **value})
