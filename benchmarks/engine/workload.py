"""What is measured: a model, made or loaded once per process, and VQA-RAD's questions."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvqa.config.data import SourceConfig
from medvqa.config.lora import LoraConfig
from medvqa.config.model import Backend, BasePrecision, ModelConfig
from medvqa.data.example import Example
from medvqa.data.image import ImageBytes
from medvqa.data.pool import load_examples
from medvqa.models.adapter import reset_adapter
from medvqa.models.encode import Encoder
from medvqa.models.families.qwen import set_pixel_budget
from medvqa.models.load import load_model, with_adapter
from medvqa.models.loaded import LoadedModel

if TYPE_CHECKING:
    import torch

TINY = "tiny"
PICTURES = ("real", "square")
BATCH_SIZE = 8  # effective, in every table of docs/engine.md
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One call of the benchmark; the command's options, see `__main__`.

    Attributes:
        model: `tiny` or a name of `benchmarks/random_models.py`.
        model_path: Saved model; without it the weights are made on the device.
        side: Sides in pixels of the largest picture, squared the pixel budget.
    """

    model: str
    vqa_rad: Path
    tokenizer: Path | None
    model_path: Path | None
    backend: Backend
    four_bit: bool
    base_precision: BasePrecision
    checkpointing: bool
    rank: int
    side: int
    steps: int
    warm_up: int
    curve_steps: int
    new_tokens: int
    num_questions: int
    attempts: int
    pictures: tuple[str, ...]
    training: tuple[str, ...]
    curves: tuple[str, ...]
    answering: tuple[str, ...]
    backends: tuple[str, ...]
    cards: tuple[float, ...]

    @property
    def model_config(self) -> ModelConfig:
        """The same model as the command line names it."""
        return ModelConfig(
            name="medvqa/tiny" if self.model == TINY else self.model,
            path=str(self.model_path) if self.model_path else None,
            backend=self.backend,
            load_in_4bit=self.four_bit,
            base_precision=self.base_precision,
            max_pixels=self.side**2,
            max_length_tokens=8192,
        )

    @property
    def variant(self) -> Row:
        """What the model was, beside its name; a record of its own each."""
        return {
            "model": self.model,
            "backend": self.backend.value,
            "four_bit": self.four_bit,
            "fp8": self.base_precision is BasePrecision.fp8,
            "checkpointing": self.checkpointing,
            "rank": self.rank,
        }


@dataclass
class Bench:
    """The model with its data, and what later rows are compared with.

    Attributes:
        curves, gradients, answers: Of the rows so far, by the row's label.
        adapter: That answers; empty until it has been trained.
    """

    settings: Settings
    loaded: LoadedModel
    pool: Sequence[Example]
    questions: Sequence[Example]
    curves: dict[str, list[float]] = field(default_factory=dict)
    gradients: "dict[str, dict[str, torch.Tensor]]" = field(default_factory=dict)
    answers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    adapter: "dict[str, torch.Tensor]" = field(default_factory=dict)

    def encoder(self) -> Encoder:
        """Return an encoder that has seen no picture yet."""
        return Encoder(self.loaded.processor, max_length_tokens=8192, pixel_dtype=self.loaded.dtype)

    def peak_gb(self) -> float | None:
        """Return the most GPU memory since `reset_peak`."""
        peak = self.loaded.peak_gpu_bytes()
        return None if peak is None else round(peak / 1e9, 1)


def load_pool(settings: Settings) -> list[Example]:
    """Return VQA-RAD's training questions."""
    return _vqa_rad(settings, "train")


def prepare(settings: Settings) -> Bench:
    """Make or load the model, and read the questions."""
    return Bench(settings, build(settings), load_pool(settings), _vqa_rad(settings, "all"))


def _vqa_rad(settings: Settings, split: str) -> list[Example]:
    source = SourceConfig(name="vqa_rad", path=str(settings.vqa_rad), split=split)
    return load_examples(source, seed=0)


def build(settings: Settings) -> LoadedModel:
    """Return the model with a fresh adapter, on the GPU where there is one."""
    lora = LoraConfig(r=settings.rank, alpha=2.0 * settings.rank)
    if settings.model_path or settings.model == TINY:
        return load_model(
            settings.model_config, lora, gradient_checkpointing=settings.checkpointing, seed=0
        )
    return _made_on_device(settings, lora)


def _made_on_device(settings: Settings, lora: LoraConfig) -> LoadedModel:
    # Not above: Unsloth, where it is measured, must be imported before.
    import torch

    from benchmarks.random_models import build_model, build_processor, build_tokenizer

    assert settings.tokenizer is not None, "give --tokenizer"
    assert settings.backend is Backend.transformers, "Unsloth needs --model-path"
    tokenizer = build_tokenizer(settings.tokenizer)
    base = build_model(settings.model, tokenizer)
    base.requires_grad_(False)
    if settings.four_bit:
        quantize(base)
    processor = build_processor(settings.model, tokenizer)
    set_pixel_budget(processor, settings.model_config)
    loaded = LoadedModel(
        base, processor, next(base.parameters()).device, torch.bfloat16, Backend.transformers,
        settings.model, settings.four_bit, settings.base_precision, is_adapted=False,
    )  # fmt: skip
    loaded = with_adapter(loaded, lora, settings.checkpointing)
    reset_adapter(loaded.model, seed=0)
    return loaded


def quantize(base: Any) -> None:
    """Store every linear layer but the output's in NF4, as loading with `load_in_4bit` does.

    In place, one layer at a time: writing the model and loading it again takes a minute.
    """
    import bitsandbytes
    import torch

    linear = [n for n, module in base.named_modules() if isinstance(module, torch.nn.Linear)]
    for name in linear:
        if name.endswith("lm_head"):
            continue
        parent, _, last = name.rpartition(".")
        old = base.get_submodule(name)
        new = bitsandbytes.nn.Linear4bit(
            old.in_features,
            old.out_features,
            bias=old.bias is not None,
            compute_dtype=torch.bfloat16,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        new.weight = bitsandbytes.nn.Params4bit(
            old.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4"
        ).to(old.weight.device)
        new.bias = old.bias
        setattr(base.get_submodule(parent), last, new)
    base.is_loaded_in_4bit = True  # by which PEFT chooses its layers
    torch.cuda.empty_cache()


# --- Pictures ------------------------------------------------------------------------------------


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
