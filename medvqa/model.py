"""Base model + LoRA on one of two backends; the only importer of unsloth and peft."""

import hashlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvqa.config import Backend, Device, Dtype, LoraConfig, ModelConfig
from medvqa.example import UserError
from medvqa.pretrained import (
    from_pretrained,
    load_processor,
    model_source,
    readable_load_errors,
    set_pixel_budget,
)

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

LANGUAGE_MODEL, VISION_TOWER = "language_model", "visual"
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
        r=lora.rank,
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
        r=lora.rank,
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


def target_pattern(base: Any, lora: LoraConfig) -> str:
    """Return a regular expression that matches exactly the layers to adapt.

    `q_proj` alone would also match vision towers that use the same names, hence the prefix.

    Raises:
        UserError: If a name in `lora.target_modules` matches no layer: training would silently
            adapt less than asked.
    """
    import torch

    linear = [n for n, module in base.named_modules() if isinstance(module, torch.nn.Linear)]
    text = [name for name in linear if f"{LANGUAGE_MODEL}." in name]
    unmatched = [m for m in lora.target_modules if not any(n.endswith(f".{m}") for n in text)]
    if unmatched:
        known = sorted({name.rsplit(".", 1)[-1] for name in text})
        raise UserError(
            f"lora.target_modules: {', '.join(unmatched)} match no layer of the language model; "
            f"it has {', '.join(known)}"
        )
    names = "|".join(map(re.escape, lora.target_modules))
    pattern = rf".*\b{LANGUAGE_MODEL}\..*\.({names})"
    if not lora.vision_layers:
        return pattern
    vision = sorted(
        {n.rsplit(".", 1)[-1] for n in linear if re.search(rf"\b{VISION_TOWER}\.blocks\.", n)}
    )
    return rf"{pattern}|.*\b{VISION_TOWER}\.blocks\..*\.({'|'.join(map(re.escape, vision))})"


def reset_adapter(model: Any, *, seed: int) -> None:
    """Initialise every adapter matrix from the seed and its name alone.

    A as `kaiming_uniform_(a=sqrt(5))`, B zero (Hu et al., LoRA, 2021; PEFT's default). Neither
    backend, load order nor what ran before matters, so two backends start from the same adapter
    and a process can serve one run after another.
    """
    import torch

    adapter = [(name, p) for name, p in model.named_parameters() if "lora_" in name]
    # The numbers are the CPU's, the same for every device. One buffer serves all, and the
    # arithmetic is the device's: hundreds of short-lived arrays cost more than what is in them.
    largest = max((parameter.numel() for _, parameter in adapter), default=0)
    buffer = torch.empty(largest, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in adapter:
            parameter.data = parameter.data.float()  # the run before may have used bfloat16
            if "lora_B" in name:
                parameter.zero_()
            elif "lora_A" in name:
                digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
                generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
                bound = parameter.shape[1] ** -0.5
                numbers = buffer[: parameter.numel()].uniform_(generator=generator)
                parameter.copy_(numbers.view(parameter.shape))
                parameter.mul_(2 * bound).sub_(bound)


def save_adapter(loaded: LoadedModel, directory: Path) -> None:
    """Write the adapter in PEFT's format; `peft.PeftModel.from_pretrained` loads it back."""
    loaded.model.save_pretrained(str(directory), safe_serialization=True)
