"""Base model + LoRA on one of two backends; the only importer of unsloth and peft."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvqa.config.errors import UserError
from medvqa.config.lora import LoraConfig
from medvqa.config.model import Backend, Device, Dtype, ModelConfig
from medvqa.models.adapter import VISION_TOWER, reset_adapter, target_pattern
from medvqa.models.source import (
    from_pretrained,
    load_processor,
    model_source,
    readable_load_errors,
    set_pixel_budget,
)

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

USED_FOR = "_medvqa_used_for_training"  # whether; absent until `use_for` has been called

# transformers imports them where they are installed, for assisted decoding and losses of detectors.
UNUSED = ("sklearn", "scipy")

CheckProcessor = Callable[[Any], object]


def accept(processor: Any) -> None:
    """Stand for no check."""


@dataclass(frozen=True)
class LoadedModel:
    """A PEFT model with its processor, ready to train and to generate.

    Attributes:
        source: Directory or hub id that the base was loaded from.
        is_quantized: Whether the base's linear layers are stored in 4 bits.
        is_adapted: Whether PEFT's wrapper is around it; a merged model has none.
    """

    model: Any
    processor: Any
    device: "torch.device"
    dtype: "torch.dtype"
    backend: Backend
    source: str
    is_quantized: bool
    is_adapted: bool = True

    @property
    def inner(self) -> Any:
        """The transformers model itself."""
        return self.model.get_base_model() if self.is_adapted else self.model

    @property
    def trainable(self) -> "list[tuple[str, torch.nn.Parameter]]":
        """The adapter's parameters: nothing else takes a gradient."""
        return [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]

    @property
    def has_frozen_vision(self) -> bool:
        """Whether a picture's features stay the same throughout training."""
        return not any(f".{VISION_TOWER}." in name for name, _ in self.trainable)

    def describe(self) -> dict[str, Any]:
        """Return what run.json keeps of the model."""
        trainable = sum(parameter.numel() for _, parameter in self.trainable)
        return {
            "source": self.source,
            # Names the weights where the config names no revision; None for a local directory.
            "commit": getattr(self.inner.config, "_commit_hash", None),
            "architecture": type(self.inner).__name__,
            "backend": self.backend.value,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "is_quantized": self.is_quantized,
            "num_parameters": sum(p.numel() for p in self.model.parameters()),
            "num_trainable": trainable,
            "num_adapted_layers": sum("lora_A" in name for name, _ in self.trainable),
        }

    def peak_gpu_bytes(self) -> int | None:
        """Return the most GPU memory that tensors have held so far; None on a CPU."""
        import torch

        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None

    def reset_peak(self) -> None:
        """Start measuring the peak anew."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def use_for(self, *, training: bool) -> None:
        """Switch dropout and the backend's kernels between training and generation."""
        # An 8B model has 3,400 modules: asked for in each step, 16 ms of it were spent here.
        if getattr(self.model, USED_FOR, None) is training and self.model.training is training:
            return
        if self.backend is Backend.unsloth:
            from unsloth import FastVisionModel

            switch = FastVisionModel.for_training if training else FastVisionModel.for_inference
            switch(self.model)
        self.model.train(training)
        setattr(self.model, USED_FOR, training)

    def autocast(self) -> AbstractContextManager[None]:
        """Compute in `dtype` on a GPU where the adapter itself is in float32."""
        import torch

        if self.device.type != "cuda" or self.dtype is torch.float32:
            return nullcontext()
        if all(parameter.dtype is self.dtype for _, parameter in self.trainable):
            return nullcontext()
        return torch.autocast("cuda", dtype=self.dtype)

    @contextmanager
    def adapter_disabled(self) -> Iterator[None]:
        """Answer as the base does, for the zero-shot row."""
        with self.model.disable_adapter():
            yield


def load_in_own_process(config: ModelConfig, lora: LoraConfig, **options: Any) -> LoadedModel:
    """Do as `load_model`, in a process that only trains and answers.

    A quarter of the time that importing transformers and PEFT takes is spent on packages that no
    run uses: they are hidden meanwhile. transformers believes for good, then, that they are not
    installed, so this is for no program that imports it for itself.
    """
    if config.backend is Backend.transformers:  # Unsloth must be imported before transformers
        _import_libraries()
    return load_model(config, lora, **options)


def _import_libraries() -> None:
    if "transformers" in sys.modules:
        return
    hidden = [name for name in UNUSED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: not to be found
    try:
        for name in ("peft", "transformers.models.auto.modeling_auto"):
            import_module(name)
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


def load_model(
    config: ModelConfig,
    lora: LoraConfig,
    *,
    gradient_checkpointing: bool,
    seed: int,
    check: CheckProcessor = accept,
) -> LoadedModel:
    """Return the base with a freshly initialised adapter.

    Args:
        config: Of the base.
        lora: Of the adapter.
        gradient_checkpointing: Whether layers' insides are computed again in the backward pass.
        seed: Of the adapter's first weights.
        check: Called with the processor before the weights are read, or even downloaded; after
            it with Unsloth, which chooses both itself.

    Raises:
        UserError: If the base cannot be loaded, or a named LoRA module matches no layer.
    """
    load = _load_unsloth if config.backend is Backend.unsloth else _load_transformers
    loaded = load(config, lora, check, gradient_checkpointing=gradient_checkpointing)
    reset_adapter(loaded.model, seed=seed)
    return loaded


def _load_transformers(
    config: ModelConfig,
    lora: LoraConfig,
    check: CheckProcessor,
    *,
    gradient_checkpointing: bool,
) -> LoadedModel:
    import peft

    loaded = load_base(config, check)
    base = loaded.model
    if gradient_checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
        base.enable_input_require_grads()
    adapter = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=target_pattern(base, lora),
    )
    return replace(loaded, model=peft.get_peft_model(base, adapter), is_adapted=True)


def load_base(config: ModelConfig, check: CheckProcessor = accept) -> LoadedModel:
    """Return the base alone, frozen, by transformers; see `load_model` for `check`."""
    import torch
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig
    from transformers.utils import logging as transformers_logging

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()

    device = _device(config.device)
    dtype = _dtype(config.dtype, device)
    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": device}}
    if config.load_in_4bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    processor = load_processor(config)
    check(processor)
    # Safetensors, since a pickle could do anything.
    base = from_pretrained(AutoModelForImageTextToText, config, use_safetensors=True, **options)
    base.requires_grad_(False)
    quantized = bool(getattr(base, "is_loaded_in_4bit", False))
    return LoadedModel(
        base,
        processor,
        torch.device(device),
        dtype,
        config.backend,
        model_source(config),
        quantized,
        is_adapted=False,
    )


def _load_unsloth(
    config: ModelConfig,
    lora: LoraConfig,
    check: CheckProcessor,
    *,
    gradient_checkpointing: bool,
) -> LoadedModel:
    # Unsloth writes its compiled code to the working directory unless told where.
    os.environ.setdefault(
        "UNSLOTH_COMPILE_LOCATION", str(Path.home() / ".cache" / "medvqa" / "unsloth")
    )
    # It would compile every decoder layer anew for each shape of batch: minutes, where images
    # differ in size, for a run of 40 steps.
    os.environ.setdefault("UNSLOTH_BLOCK_COMPILE", "0")
    try:
        from unsloth import FastVisionModel  # first: it patches transformers and peft
    except ImportError as error:
        raise UserError(
            f"model.backend=unsloth, but unsloth does not import ({error}); "
            "pip install 'medvqa[gpu]' or say model.backend=transformers"
        ) from error
    import torch

    device = torch.device("cuda", torch.cuda.current_device())
    dtype = _dtype(config.dtype, "cuda")
    source = model_source(config)
    checkpointing: Any = "unsloth" if gradient_checkpointing else False
    with readable_load_errors(source):
        base, processor = FastVisionModel.from_pretrained(
            source,
            revision=config.revision,
            max_seq_length=config.max_length_tokens,
            dtype=dtype,
            load_in_4bit=config.load_in_4bit,
            use_gradient_checkpointing=checkpointing,
        )
    set_pixel_budget(processor, config)
    check(processor)
    model = FastVisionModel.get_peft_model(
        base,
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        bias="none",
        target_modules=target_pattern(base, lora),
        finetune_vision_layers=lora.vision_layers,
        use_gradient_checkpointing=checkpointing,
    )
    quantized = bool(getattr(base, "is_loaded_in_4bit", False))
    return LoadedModel(model, processor, device, dtype, config.backend, source, quantized)


def _device(wanted: Device) -> str:
    import torch

    if wanted is Device.cuda and not torch.cuda.is_available():
        raise UserError("model.device=cuda, but PyTorch sees no GPU; use model.device=cpu")
    if wanted is Device.cpu or not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{torch.cuda.current_device()}"


def _dtype(wanted: Dtype, device: str) -> "torch.dtype":
    import torch

    if wanted is Dtype.float32 or (wanted is Dtype.auto and device == "cpu"):
        return torch.float32
    return torch.bfloat16
