"""What an answer depends on, as a key: weights, adapter, settings, prompt, pictures.

The weights are those in memory, not a path or a commit: a file that was rewritten in place, a base
that was quantised while loading and a model that another job has served all tell themselves apart,
and the same weights are the same wherever they came from.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvqa.collate import Encoder
from medvqa.config import Decoding
from medvqa.example import Example
from medvqa.generation import chosen_decoding
from medvqa.model import LoadedModel

if TYPE_CHECKING:
    import torch

BASE = "base"  # what an adapter that changes nothing is called
# Our own code that computes an answer: after an edit, nothing computed before it counts.
CODE = (
    *("ahead", "collate", "decoder", "engine", "generation", "image", "kernels", "model"),
    *("pretrained", "projection", "triton_kernels", "vision"),
)
PACKAGES = (
    *("torch", "torchvision", "transformers", "tokenizers", "peft", "bitsandbytes", "unsloth"),
    *("unsloth_zoo", "liger-kernel", "triton", "pillow"),
)
CHUNK_BYTES = 128 * 2**20
# Multipliers of splitmix64 (Steele et al., Fast splittable pseudorandom number generators, 2014).
STEP, FIRST, SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def question_keys(
    loaded: LoadedModel,
    encoder: Encoder,
    examples: Sequence[Example],
    *,
    max_new_tokens: int,
    decoding: Decoding,
) -> list[str]:
    """Return one key an example, of all that its answer depends on; equal questions share one.

    A picture counts by the bytes of its file, so none is decoded. The batch size is left out:
    docs/prediction_cache.md.

    Raises:
        UserError: If a picture cannot be read.
    """
    chosen = chosen_decoding(decoding, loaded)
    settings = _sha256(
        {
            **_computation(loaded, encoder),
            "max_new_tokens": max_new_tokens,
            "decoding": chosen.value,
            # Packed decoding puts its own in place with the first answer; it looks at no others.
            "kernels": _replaced(loaded) if chosen is Decoding.plain else [],
        }
    )
    tokenizer = encoder.processor.tokenizer
    pictures: dict[tuple[str, str], str] = {}
    keys = []
    for example in examples:
        shown = []
        for image, image_id in zip(example.images, example.image_ids, strict=True):
            name = (image.name, image_id)
            if name not in pictures:
                pictures[name] = hashlib.sha256(image.read()).hexdigest()
            shown.append(pictures[name])
        prompt = encoder.prompt(example.question, num_images=len(example.images))
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        keys.append(_sha256([settings, ids, shown]))
    return keys


def _computation(loaded: LoadedModel, encoder: Encoder) -> dict[str, Any]:
    """Return how the model as it is now turns a question into tokens, and those into text."""
    import torch

    tokenizer = encoder.processor.tokenizer
    on_gpu = loaded.device.type == "cuda"
    return {
        "weights": weights_digest(loaded),
        "adapter": adapter_digest(loaded),
        "config": _public(loaded.inner.config.to_dict()),
        "generation": _public(loaded.inner.generation_config.to_dict()),
        "attention": loaded.inner.config._attn_implementation,
        "backend": loaded.backend.value,
        "dtype": str(loaded.dtype),
        "is_quantized": loaded.is_quantized,
        "is_autocast": not isinstance(loaded.autocast(), nullcontext),
        "float32": torch.get_float32_matmul_precision(),
        "device": torch.cuda.get_device_name(loaded.device) if on_gpu else "cpu",
        "image_processor": _public(encoder.processor.image_processor.to_dict()),
        "max_length_tokens": encoder.max_length_tokens,
        "vocabulary": _sha256(tokenizer.get_vocab()),
        "end": [tokenizer.eos_token_id, encoder.pad_token_id, encoder.image_token_id],
        "packages": {name: _version(name) for name in PACKAGES},
        "code": {
            name: hashlib.sha256(Path(__file__).with_name(f"{name}.py").read_bytes()).hexdigest()
            for name in CODE
        },
    }


def _replaced(loaded: LoadedModel) -> list[str]:
    """Return the names of what stands in a module in place of its class's own computation."""
    found = {
        getattr(vars(module)["forward"], "__qualname__", "?")
        for module in loaded.model.modules()
        if "forward" in vars(module)
    }
    return sorted(found)


def weights_digest(loaded: LoadedModel) -> str:
    """Return what names the base's tensors; wrapping them for an adapter changes nothing."""
    base = (
        (name.removeprefix("base_model.model.").replace(".base_layer.", "."), tensor)
        for name, tensor in loaded.model.state_dict().items()
        if "lora_" not in name
    )
    return digest_tensors(base)


def adapter_digest(loaded: LoadedModel) -> str:
    """Return what names the adapter; `base` where it is disabled, absent or adds nothing."""
    import torch

    if not loaded.is_adapted or loaded.model.get_model_status().enabled is False:
        return BASE
    tensors = {name: t for name, t in loaded.model.state_dict().items() if "lora_" in name}
    seconds = [tensor.count_nonzero() for name, tensor in tensors.items() if "lora_B" in name]
    if not torch.stack(seconds).any():
        return BASE
    settings = loaded.model.active_peft_config
    scale = [settings.lora_alpha, settings.r, settings.use_rslora]
    return _sha256([digest_tensors(tensors.items()), scale])


def digest_tensors(tensors: "Iterable[tuple[str, torch.Tensor]]") -> str:
    """Return a hash of names, types, shapes and values, computed where the tensors are.

    Sixteen gigabytes on a GPU cost less than a second. The values are summed after mixing each
    eight bytes with their place (splitmix64): 64 bits, enough against accidents, not attackers.
    """
    import torch

    described = []
    with torch.no_grad():
        for name, tensor in sorted(tensors, key=lambda item: item[0]):
            described.append([name, str(tensor.dtype), list(tensor.shape), int(_mixed_sum(tensor))])
    return _sha256(described)


def _mixed_sum(tensor: "torch.Tensor") -> "torch.Tensor":
    import torch

    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, len(data), CHUNK_BYTES):
        part = data[start : start + CHUNK_BYTES]
        words = torch.nn.functional.pad(part, (0, -len(part) % 8)).view(torch.int64)
        place = torch.arange(1, len(words) + 1, device=tensor.device).add_(start // 8)
        words = words + place.mul_(STEP)
        words = (words ^ _shifted(words, 30)) * FIRST
        words = (words ^ _shifted(words, 27)) * SECOND
        total += (words ^ _shifted(words, 31)).sum()
    return total


def _shifted(words: "torch.Tensor", bits: int) -> "torch.Tensor":
    """Shift right and fill with zeros, which PyTorch's own shift does not."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _public(values: Any) -> Any:
    """Leave out what says where a config came from, and with which version it was written."""
    if isinstance(values, dict):
        return {
            str(name): _public(value)
            for name, value in values.items()
            if not str(name).startswith("_") and name != "transformers_version"
        }
    return values


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
