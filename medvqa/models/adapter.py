"""LoRA adapters: which layers they adapt, their first weights, and their files."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvqa.config.errors import UserError
from medvqa.config.lora import LoraConfig
from medvqa.models.families.layers import QWEN, family_of

if TYPE_CHECKING:
    import torch

    from medvqa.models.loaded import LoadedModel

ADAPTER_FILE = "adapter_model.safetensors"
VISION_TOWER = QWEN.vision


def read_adapter(directory: Path) -> "dict[str, torch.Tensor]":
    """Return the weights of a saved adapter.

    Raises:
        UserError: If they cannot be read, or are not finite because the training diverged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = directory / ADAPTER_FILE
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the adapter {path}: {error}") from error
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise UserError(f"{path} is not finite in {name}: its training diverged")
    return weights


def load_adapter(loaded: "LoadedModel", directory: Path) -> None:
    """Put a saved adapter into the model's own, in the type in which it was saved.

    Raises:
        UserError: If there is none, or it was made for other layers or another rank.
    """
    path, weights = directory / ADAPTER_FILE, read_adapter(directory)
    own = {name.replace(".default.", "."): p for name, p in loaded.trainable}
    differing = own.keys() ^ weights.keys() or {
        name for name, parameter in own.items() if parameter.shape != weights[name].shape
    }
    if differing:
        raise UserError(
            f"{path} does not fit {loaded.source}: {len(differing)} of {len(own)} "
            f"layers differ, first {min(differing)}"
        )
    for name, parameter in own.items():
        parameter.data = weights[name].to(loaded.device)


def target_modules(base: Any, lora: LoraConfig) -> tuple[str, ...]:
    """Return the names of the layers to adapt: the configured ones, or the family's.

    Raises:
        UserError: If a configured name matches no layer, or the family's table does not cover a
            linear layer: training would silently adapt less than expected.
    """
    family = family_of(base)
    present = _leaves(linear_layers(base, family.language_model))
    known = ", ".join(sorted(present))
    if lora.target_modules is not None:
        unmatched = [name for name in lora.target_modules if name not in present]
        if unmatched:
            raise UserError(
                f"lora.target_modules: {', '.join(unmatched)} match no layer of the language "
                f"model; it has {known}"
            )
        return tuple(lora.target_modules)
    uncovered = present - {*family.targets, *family.exceptions}
    if uncovered:
        raise UserError(
            f"no list of layers to adapt covers {', '.join(sorted(uncovered))} of "
            f"{base.config.model_type}; choose some with lora.target_modules=[...]; the language "
            f"model has {known}"
        )
    return tuple(name for name in family.targets if name in present)


def linear_layers(base: Any, module: str) -> list[str]:
    """Return the full names of the linear layers below a module."""
    import torch

    inside = re.compile(rf"(.*\.)?{re.escape(module)}\..*")
    layers = [n for n, layer in base.named_modules() if isinstance(layer, torch.nn.Linear)]
    return [name for name in layers if inside.fullmatch(name)]


def target_pattern(base: Any, lora: LoraConfig) -> str:
    """Return a regular expression that matches exactly the layers to adapt.

    `q_proj` alone would also match vision towers that use the same names, hence the prefix.

    Raises:
        UserError: As `target_modules`.
    """
    family = family_of(base)
    pattern = _pattern(family.language_model, target_modules(base, lora))
    if not lora.vision_layers:
        return pattern
    tower = ".".join(filter(None, (family.vision, family.vision_blocks)))
    return f"{pattern}|{_pattern(tower, sorted(_leaves(linear_layers(base, tower))))}"


def _leaves(names: Iterable[str]) -> set[str]:
    return {name.rsplit(".", 1)[-1] for name in names}


def _pattern(module: str, names: Iterable[str]) -> str:
    return rf".*\b{re.escape(module)}\..*\.({'|'.join(map(re.escape, names))})"


def reset_adapter(model: Any, *, seed: int) -> None:
    """Initialise every adapter matrix from the seed and its name alone.

    A as `kaiming_uniform_(a=sqrt(5))`, B zero (Hu et al., LoRA, 2021; PEFT's default). So two
    backends start from the same adapter, and a process can serve one run after another.
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


def save_adapter(loaded: "LoadedModel", directory: Path) -> None:
    """Write the adapter in PEFT's format; `peft.PeftModel.from_pretrained` loads it back."""
    loaded.model.save_pretrained(str(directory), safe_serialization=True)
