"""The config group `model`: base model, backend, precision and pixel budget."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from medvqa.config.bounds import check, exclude


class Backend(Enum):
    """Library that loads the model and attaches the adapter.

    `auto` is the fastest path whose results are proven equal; `medvqa.fast.choice` logs it.
    """

    auto = "auto"
    transformers = "transformers"
    unsloth = "unsloth"


class BasePrecision(Enum):
    """How frozen weights are stored: as `dtype` says, or in 8 bits (Hopper and newer GPUs)."""

    dtype = "dtype"
    fp8 = "fp8"


class Device(Enum):
    """Where the model runs; `auto` is CUDA where there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Dtype(Enum):
    """Compute type; `auto` is bfloat16 on CUDA and float32 on a CPU."""

    auto = "auto"
    bfloat16 = "bfloat16"
    float32 = "float32"


@dataclass(kw_only=True)
class ModelConfig:
    """Base model.

    Attributes:
        name: Hub id, or `medvqa/tiny` for the embedded one.
        path: Local directory in the hub's layout, used in place of the hub.
        revision: Commit, tag or branch of the hub's repository; its main branch if null.
        load_in_4bit: Store the frozen weights in 4 bits (NF4 of bitsandbytes); needs a GPU.
        min_pixels: Qwen's pixel budget of an image, lower end; smaller ones are scaled up.
        max_pixels: Qwen's pixel budget of an image, upper end; larger ones are scaled down. Without
            it, 512 x 512.
        image_options: Size options of another family's image processor, by its own names.
        max_length_tokens: A longer sample is an error, never cut: cutting drops image tokens.
    """

    name: str = MISSING
    path: str | None = None
    revision: str | None = None
    backend: Backend = Backend.auto
    device: Device = Device.auto
    dtype: Dtype = Dtype.auto
    load_in_4bit: bool = False
    base_precision: BasePrecision = BasePrecision.dtype
    min_pixels: int = 4096
    max_pixels: int | None = None
    image_options: dict[str, Any] = field(default_factory=dict)
    max_length_tokens: int = 2048

    def __post_init__(self) -> None:
        """Check contradictions."""
        check(
            self.max_pixels is None or self.min_pixels <= self.max_pixels,
            f"model.min_pixels={self.min_pixels} is above model.max_pixels={self.max_pixels}",
        )
        check(
            not (self.device is Device.cpu and self.backend is Backend.unsloth),
            "model.backend=unsloth needs a GPU but model.device=cpu; use model.backend=auto",
        )
        if self.base_precision is BasePrecision.fp8:
            exclude(
                {
                    "model.load_in_4bit=true": self.load_in_4bit,
                    "model.device=cpu": self.device is Device.cpu,
                    "model.backend=unsloth": self.backend is Backend.unsloth,
                },
                "model.base_precision=fp8 does not go with {setting}; use "
                "model.base_precision=dtype",
            )
        check(
            not (self.device is Device.cpu and self.load_in_4bit),
            "model.load_in_4bit=true needs a GPU but model.device=cpu; "
            "use model.load_in_4bit=false",
        )
