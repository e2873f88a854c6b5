"""Base model + LoRA by Unsloth, with its own kernels; the only importer of unsloth."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medvqa.config.errors import UserError, first_line
from medvqa.config.lora import LoraConfig
from medvqa.config.model import Dtype, ModelConfig
from medvqa.models.adapter import target_pattern
from medvqa.models.loaded import LoadedModel
from medvqa.models.source import model_source, readable_load_errors, set_sizes


@contextmanager
def refused_by_unsloth(source: str) -> Iterator[None]:
    """Turn what Unsloth raises about a model that it does not support into one clear line."""
    import torch
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        yield
    except (OSError, HTTPError, UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # Unsloth has no type of its own for what it does not support
        reason = first_line(error)
        raise UserError(
            f"Unsloth does not accept {source} ({reason}); say model.backend=transformers"
        ) from error


def _unsloth() -> Any:
    """Import Unsloth and return its loader.

    Raises:
        UserError: If it cannot be imported.
    """
    # Unsloth writes its compiled code to the working directory by default.
    os.environ.setdefault(
        "UNSLOTH_COMPILE_LOCATION", str(Path.home() / ".cache" / "medvqa" / "unsloth")
    )
    try:
        from unsloth import FastVisionModel  # first: it patches transformers and peft
    except ImportError as error:
        raise UserError(
            f"model.backend=unsloth, but unsloth does not import ({error}); "
            'pip install -e ".[gpu]" or say model.backend=transformers'
        ) from error
    return FastVisionModel


def _adapter_options(base: Any, lora: LoraConfig) -> dict[str, Any]:
    return {
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "bias": "none",
        "target_modules": target_pattern(base, lora),
        "finetune_vision_layers": lora.vision_layers,
    }


def load_unsloth(
    config: ModelConfig,
    lora: LoraConfig,
    check: Callable[[Any], object],
    *,
    gradient_checkpointing: bool,
) -> LoadedModel:
    """Return the base with an adapter; see `medvqa.models.load.load_model`.

    Raises:
        UserError: If Unsloth cannot be imported, or the base cannot be loaded.
    """
    loader = _unsloth()
    import torch

    device = torch.device("cuda", torch.cuda.current_device())
    dtype = torch.float32 if config.dtype is Dtype.float32 else torch.bfloat16
    source = model_source(config)
    checkpointing: Any = "unsloth" if gradient_checkpointing else False
    with readable_load_errors(source), refused_by_unsloth(source):
        base, processor = loader.from_pretrained(
            source,
            revision=config.revision,
            max_seq_length=config.max_length_tokens,
            dtype=dtype,
            load_in_4bit=config.load_in_4bit,
            use_gradient_checkpointing=checkpointing,
        )
    set_sizes(processor, config)
    check(processor)
    with refused_by_unsloth(source):
        options = {"use_gradient_checkpointing": checkpointing, **_adapter_options(base, lora)}
        model = loader.get_peft_model(base, **options)
    quantized = bool(getattr(base, "is_loaded_in_4bit", False))
    return LoadedModel(model, processor, device, dtype, config.backend, source, quantized)
