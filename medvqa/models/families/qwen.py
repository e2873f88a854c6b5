"""Qwen's pictures: patches of any size in a grid, encoded once per picture.

Shapes: B batch, T tokens, P image patches, D values of a patch.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from medvqa.config.errors import UserError
from medvqa.config.model import ModelConfig
from medvqa.data.example import Example, ImageSource
from medvqa.data.image import load_rgb
from medvqa.models.patches import Patches
from medvqa.models.sample import IGNORED, Sample
from medvqa.models.turn import Turn, tokenize

if TYPE_CHECKING:
    import torch

PROCESSORS = ("Qwen2VLProcessor", "Qwen2_5_VLProcessor", "Qwen3VLProcessor")
MAX_PIXELS = 512 * 512


class Grids:
    """Encodes pictures for `medvqa.models.encode.Encoder`; see there for the arguments."""

    def __init__(
        self, processor: Any, patches: Patches | None, pixel_dtype: "torch.dtype | None"
    ) -> None:
        self.processor = processor
        self._patches = Patches(max_images=512) if patches is None else patches
        self._pixel_dtype = pixel_dtype
        self.image_token_id: int = processor.image_token_id
        self.image_token_ids = {self.image_token_id}

    def count(self, sizes: Sequence[tuple[int, int]], text: str) -> int:
        """Return by how many tokens pictures of these widths and heights lengthen the prompt."""
        images = self.processor.image_processor
        return sum(
            int(images.get_number_of_image_patches(height, width)) // images.merge_size**2 - 1
            for width, height in sizes
        )

    def encode(self, turn: Turn, example: Example) -> Sample:
        """Return the sample of a rendered example."""
        import torch

        patches = list(map(self._encode_image, example.images, example.image_ids))
        merge = self.processor.image_processor.merge_size**2
        marker = self.processor.image_token
        # From the back, so that an expanded image does not shift the markers before it.
        pieces = turn.prompt.split(marker)
        for index, (_, grid) in enumerate(patches):
            pieces[index] += marker * (int(grid.prod()) // merge)
        values = [values for values, _ in patches]
        return Sample(
            prompt_ids=tuple(tokenize(self.processor, "".join(pieces))),
            answer_ids=turn.answer_ids,
            # One picture per question is the rule, and needs no copy.
            pixel_values=torch.cat(values) if len(values) > 1 else next(iter(values), None),
            image_grid_thw=torch.stack([grid for _, grid in patches]) if patches else None,
            image_keys=tuple(map(_image_key, example.images, example.image_ids)),
        )

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

        tokenizer = self.processor.tokenizer
        pad = tokenizer.pad_token_id  # masked wherever it stands
        width = max(len(row) for row in rows)
        fill = tokenizer.eos_token_id if pad is None else pad
        ids = torch.full((len(rows), width), fill, dtype=torch.long)
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


def set_pixel_budget(processor: Any, config: ModelConfig) -> None:
    """Set the pixel budget and prove that it is obeyed.

    `max_pixels` given to `from_pretrained` is ignored by recent processors
    (transformers issue 41955), so the size is set and a probe image is counted.

    Raises:
        UserError: If the budget is not obeyed, or another size option is given.
    """
    import numpy as np

    for name in config.image_options:
        raise UserError(
            f"model.image_options.{name} cannot be set for this family: it has model.min_pixels "
            "and model.max_pixels"
        )
    images = processor.image_processor
    most = config.max_pixels or MAX_PIXELS
    images.size = type(images.size)(shortest_edge=config.min_pixels, longest_edge=most)
    probe = np.zeros((2000, 1500, 3), dtype=np.uint8)
    grid = images(images=[probe], return_tensors="pt")["image_grid_thw"][0]
    pixels = int(grid.prod()) * images.patch_size**2
    if pixels > most:
        raise UserError(
            f"model.max_pixels={most} is not obeyed: a large image became "
            f"{pixels} pixels; it must be at least {(images.patch_size * images.merge_size) ** 2}"
        )


def _image_key(image: ImageSource, image_id: str) -> str:
    return f"{image.name}:{image_id}"
