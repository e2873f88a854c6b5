"""What is measured: a model, loaded once per process, and VQA-RAD's questions."""

import argparse
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from medvqa.config.data import SourceConfig
from medvqa.config.lora import LoraConfig
from medvqa.config.model import Backend, BasePrecision, ModelConfig
from medvqa.data.example import Example
from medvqa.data.image import ImageBytes
from medvqa.data.pool import load_examples
from medvqa.models.encode import Encoder
from medvqa.models.load import load_model
from medvqa.models.loaded import LoadedModel

if TYPE_CHECKING:
    import torch

TINY = "tiny"
PICTURES = ("real", "square")
SIDE = 512  # the default of Qwen's budget; other families have none
BATCH_SIZE = 8  # effective, in every table of docs/engine.md


@dataclass
class Bench:
    """The model with its data, and what later rows are compared with.

    Attributes:
        options: The command's, see `__main__`.
        losses: Of the first case, by the kind of pictures.
        answers: Of the rows so far, by the row's label.
        adapter: That answers; empty until it has been trained.
    """

    options: argparse.Namespace
    loaded: LoadedModel
    pool: Sequence[Example]
    questions: Sequence[Example]
    losses: dict[str, list[float]] = field(default_factory=dict)
    answers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    adapter: "dict[str, torch.Tensor]" = field(default_factory=dict)

    def encoder(self) -> Encoder:
        """Return an encoder that has seen no picture yet."""
        return Encoder(self.loaded.processor, max_length_tokens=8192, pixel_dtype=self.loaded.dtype)

    def peak_gb(self) -> float | None:
        """Return the most GPU memory since `reset_peak`."""
        peak = self.loaded.peak_gpu_bytes()
        return None if peak is None else round(peak / 1e9, 1)


def record_name(part: str, options: argparse.Namespace) -> str:
    """Return the record's name in the file, such as `training qwen3_vl_8b four_bit`."""
    words = {
        options.backend: options.backend != "transformers",
        "four_bit": options.four_bit,
        "fp8": options.base_precision == "fp8",
        "checkpointing": options.checkpointing,
        f"rank={options.rank}": options.rank != 16,
    }
    return " ".join([part, options.model, *(word for word, holds in words.items() if holds)])


def prepare(options: argparse.Namespace) -> Bench:
    """Load the model, and read the questions."""
    pool, questions = (
        load_examples(SourceConfig(name="vqa_rad", path=str(options.vqa_rad), split=split), seed=0)
        for split in ("train", "all")
    )
    return Bench(options, build(options), pool, questions)


def build(options: argparse.Namespace) -> LoadedModel:
    """Return the model with a fresh adapter, on the GPU where there is one."""
    config = ModelConfig(
        name="medvqa/tiny" if options.model == TINY else options.model,
        path=str(options.model_path) if options.model_path else None,
        backend=Backend[options.backend],
        load_in_4bit=options.four_bit,
        base_precision=BasePrecision[options.base_precision],
        max_pixels=None if options.side == SIDE else options.side**2,
        max_length_tokens=8192,
    )
    lora = LoraConfig(r=options.rank, alpha=2.0 * options.rank)
    return load_model(config, lora, gradient_checkpointing=options.checkpointing, seed=0)


def with_pictures(examples: Sequence[Example], *, kind: str, side: int) -> list[Example]:
    """Return the examples with their `real` pictures, or each with a `square` one of its own."""
    if kind == "real":
        return list(examples)
    return [
        replace(example, images=(picture,), image_ids=(picture.name,))
        for example, picture in zip(examples, noise(side), strict=False)
    ]


def noise(side: int) -> Iterator[ImageBytes]:
    """Yield square pictures of noise, the same ones in every process."""
    import numpy as np
    from PIL import Image

    number = 0
    while True:
        pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
        yield ImageBytes(f"noise-{side}-{number}.png", buffer.getvalue())
        number += 1
