"""Weights on the disk -> models; safetensors only, no code from elsewhere."""

from pathlib import Path

from medvqa.config import ModelConfig
from medvqa.example import UserError
from medvqa.model import LoadedModel
from medvqa.pretrained import from_pretrained

ADAPTER_FILE = "adapter_model.safetensors"


def load_adapter(loaded: LoadedModel, directory: Path) -> None:
    """Put a saved adapter into the model's own, in the type in which it was saved.

    Raises:
        UserError: If there is none, or it was made for other layers or another rank.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = directory / ADAPTER_FILE
    try:
        saved = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the adapter {path}: {error}") from error
    wanted = {name.replace(".default.", "."): p for name, p in loaded.trainable}
    differing = wanted.keys() ^ saved.keys() or {
        name for name, parameter in wanted.items() if parameter.shape != saved[name].shape
    }
    if differing:
        raise UserError(
            f"{path} does not fit {loaded.source}: {len(differing)} of {len(wanted)} "
            f"layers differ, first {min(differing)}"
        )
    for name, parameter in wanted.items():
        parameter.data = saved[name].to(loaded.device)


def is_stored_in_4bit(config: ModelConfig) -> bool:
    """Return whether the base's own files are quantised, whatever `load_in_4bit` says."""
    from transformers import AutoConfig

    found = from_pretrained(AutoConfig, config)
    return "quantization_config" in found.to_dict()
