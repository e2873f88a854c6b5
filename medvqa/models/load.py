"""Base model + LoRA on one of two backends; the only importer of peft."""

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from medvqa.config.errors import UserError
from medvqa.config.lora import LoraConfig
from medvqa.config.model import Backend, BasePrecision, Device, Dtype, ModelConfig
from medvqa.models.adapter import reset_adapter, target_pattern
from medvqa.models.families.processor import tell_model
from medvqa.models.loaded import LoadedModel
from medvqa.models.sharding import sharded_base
from medvqa.models.source import from_pretrained, load_processor, model_source
from medvqa.models.unsloth import load_unsloth

# transformers and accelerate import them where they are installed, for assisted decoding, losses of
# detectors and SageMaker.
UNUSED = ("sklearn", "scipy", "boto3")

HOPPER = (9, 0)  # compute capability of the first GPUs with scaled products in 8 bits

CheckProcessor = Callable[[Any], object]


def accept(processor: Any) -> None:
    """Stand for no check."""


def load_in_own_process(config: ModelConfig, lora: LoraConfig, **options: Any) -> LoadedModel:
    """Do as `load_model`, in a process that only trains and answers.

    A third of the import time of transformers and PEFT goes to packages that no run uses. These
    are hidden during the import, and the files of all installed packages are not listed. For the
    rest of the process, transformers regards the hidden packages as not installed. A program that
    imports transformers itself must not call this.
    """
    # Unsloth must be imported before transformers.
    if config.backend is not Backend.unsloth and "transformers" not in sys.modules:
        import_alone()
    return load_model(config, lora, **options)


def import_alone() -> None:
    """Import what every model needs; see `load_in_own_process`."""
    hidden = [name for name in UNUSED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None hides a module
    try:
        with _short_listing():
            _import_libraries()
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
    gc.freeze()


class _Distributions(dict[str, list[str]]):
    """Which distributions a module comes from, looked up by name first.

    transformers lists the files of all installed packages, to ask for four of them.
    """

    def get(self, name: str, default: Any = None) -> Any:
        if find_spec(name) is None:
            return default
        with suppress(metadata.PackageNotFoundError):
            metadata.version(name)
            return [name]
        return _list_distributions().get(name, default)


_list_distributions = metadata.packages_distributions


@contextmanager
def _short_listing() -> Iterator[None]:
    metadata.packages_distributions = _Distributions
    try:
        yield
    finally:
        metadata.packages_distributions = _list_distributions


def _import_libraries() -> None:
    """Import what every model needs.

    It leaves a million objects that stay: the collector would walk through them again and again,
    for a quarter of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        import_module("peft")
        import_module("transformers.models.auto.modeling_auto")
    finally:
        if was_enabled:
            gc.enable()


def load_model(
    config: ModelConfig,
    lora: LoraConfig,
    *,
    gradient_checkpointing: bool,
    seed: int,
    check: CheckProcessor = accept,
    group: Any = None,
) -> LoadedModel:
    """Return the base with a freshly initialised adapter.

    Args:
        config: Of the base.
        lora: Of the adapter.
        gradient_checkpointing: Whether layers' insides are computed again in the backward pass.
        seed: Of the adapter's first weights.
        check: Called with the processor before the weights are read, or even downloaded; after
            it with Unsloth, which chooses both itself.
        group: Of the ranks over which the base's weights are spread; None keeps them whole.

    Raises:
        UserError: If the base cannot be loaded, or a named LoRA module matches no layer.
    """
    if config.backend is Backend.unsloth:
        loaded = load_unsloth(config, lora, check, gradient_checkpointing=gradient_checkpointing)
    else:
        loaded = with_adapter(load_base(config, check, group), lora, gradient_checkpointing)
    reset_adapter(loaded.model, seed=seed)
    return loaded


def with_adapter(
    loaded: LoadedModel, lora: LoraConfig, gradient_checkpointing: bool = False
) -> LoadedModel:
    """Return a frozen base with an adapter that `reset_adapter` has yet to initialise."""
    import peft

    base = loaded.model
    if gradient_checkpointing:
        loaded.recompute_layers()
    adapter = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=target_pattern(base, lora),
    )
    with loaded.device:  # PEFT makes each tensor on the CPU and moves it otherwise
        model = peft.get_peft_model(base, adapter)
    return replace(loaded, model=model, is_adapted=True)


def load_base(
    config: ModelConfig, check: CheckProcessor = accept, group: Any = None
) -> LoadedModel:
    """Return the base alone, frozen, by transformers; see `load_model` for the arguments."""
    _import_libraries()
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging as transformers_logging

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()

    device = _device(config.device)
    is_wide = config.dtype is Dtype.float32 or (config.dtype is Dtype.auto and device == "cpu")
    dtype = torch.float32 if is_wide else torch.bfloat16
    if config.base_precision is BasePrecision.fp8:
        _check_fp8(device)
    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": device}}
    if config.load_in_4bit:
        options["quantization_config"] = _nf4(dtype)
    processor = load_processor(config)
    check(processor)
    if group is None:  # safetensors, since a pickle could do anything
        base = from_pretrained(AutoModelForImageTextToText, config, use_safetensors=True, **options)
    else:
        base = sharded_base(config, dtype, torch.device(device), group)
    base.requires_grad_(False)
    tell_model(base, config)
    return LoadedModel(
        base,
        processor,
        torch.device(device),
        dtype,
        Backend.transformers,
        model_source(config),
        bool(getattr(base, "is_loaded_in_4bit", False)),
        config.base_precision,
        is_adapted=False,
        is_sharded=group is not None,
    )


def _nf4(dtype: Any) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def adapter_place(directory: Path) -> Path:
    """Return where the adapter's files are, in a run of ours or in the directory itself.

    Raises:
        UserError: If there is none.
    """
    place = directory / "adapter" if (directory / "adapter").is_dir() else directory
    if not (place / "adapter_config.json").is_file():
        raise UserError(f"adapter={directory} holds no adapter_config.json, so it is no adapter")
    return place


def load_peft_adapter(loaded: LoadedModel, directory: Path) -> LoadedModel:
    """Return a base with a saved adapter, of a run of ours or of any program that uses PEFT.

    Raises:
        UserError: If there is none, or it was made for another base.
    """
    import peft

    place = adapter_place(directory)
    try:
        model = peft.PeftModel.from_pretrained(loaded.model, str(place), is_trainable=False)
    except Exception as error:  # of PEFT, safetensors, JSON or the disk
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"adapter={directory} does not fit {loaded.source}: {reason}") from error
    return replace(loaded, model=model.eval(), is_adapted=True)


def _check_fp8(device: str) -> None:
    import torch

    name = "a CPU" if device == "cpu" else torch.cuda.get_device_name(device)
    if device == "cpu" or torch.cuda.get_device_capability(device) < HOPPER:
        raise UserError(
            "model.base_precision=fp8 needs an NVIDIA GPU of the Hopper generation or newer, and "
            f"this is {name}; use model.base_precision=dtype or, on a GPU, model.load_in_4bit=true"
        )


def _device(device: Device) -> str:
    import torch

    if device is Device.cuda and not torch.cuda.is_available():
        raise UserError("model.device=cuda, but PyTorch sees no GPU; use model.device=cpu")
    if device is Device.cpu or not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{torch.cuda.current_device()}"
