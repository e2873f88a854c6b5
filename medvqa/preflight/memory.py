"""GPU memory of a run from the model's shapes; docs/preflight.md has the formula and its checks."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvqa.config.errors import UserError
from medvqa.config.model import Backend, Dtype
from medvqa.config.schema import Config
from medvqa.config.training import Engine, Optimizer
from medvqa.models.adapter import LANGUAGE_MODEL, target_pattern
from medvqa.models.source import model_source
from medvqa.preflight.downloads import hub_answers

if TYPE_CHECKING:
    import torch

# Shapes of the published models, so that an estimate needs no network: text hidden size, layers,
# heads, key-value heads, MLP, tied embeddings, vocabulary; vision as the config calls it.
PUBLISHED: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "Qwen/Qwen3-VL-8B-Instruct": (
        "Qwen3VL",
        (4096, 36, 32, 8, 12288, False, 151936),
        {"hidden_size": 1152, "depth": 27, "intermediate_size": 4304,
         "deepstack_visual_indexes": [8, 16, 24], "out_hidden_size": 4096},
    ),
    "Qwen/Qwen3-VL-2B-Instruct": (
        "Qwen3VL",
        (2048, 28, 16, 8, 6144, True, 151936),
        {"hidden_size": 1024, "depth": 24, "intermediate_size": 4096,
         "deepstack_visual_indexes": [5, 11, 17], "out_hidden_size": 2048},
    ),
    "Qwen/Qwen2-VL-7B-Instruct": (
        "Qwen2VL",
        (3584, 28, 28, 4, 18944, False, 152064),
        {"embed_dim": 1280, "depth": 32, "hidden_size": 3584},
    ),
    "unsloth/Qwen2-VL-2B-Instruct-bnb-4bit": (
        "Qwen2VL",
        (1536, 28, 12, 2, 8960, True, 151936),
        {"embed_dim": 1280, "depth": 32, "hidden_size": 1536},
    ),
}  # fmt: skip
TEXT_FIELDS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("intermediate_size", "tie_word_embeddings", "vocab_size"),
)
# Bytes that autograd keeps a token and layer for each unit of hidden size, query width, key-value
# width and MLP, computing in 16 bits; counted from the saved tensors themselves.
KEPT = {
    ("norm", "plain"): (18, 10, 8, 8),
    ("norm", "fused"): (4, 6, 6, 4),
    ("no norm", "plain"): (19, 6, 4, 8),
    ("no norm", "fused"): (4, 6, 6, 4),
}
# With dropout each adapted layer also keeps its masked input, or its mask.
KEPT_BY_DROPOUT = {"plain": (20, 4, 0, 4), "fused": (10, 2, 0, 2)}
LOGIT_BYTES = 6  # 16 bits, and a copy in 32 for the loss
BYTES_OF_PLAIN_SCALES = 4 / 64  # which the fused engine keeps beside
BYTES_OF_4_BITS = 0.5 + 1 / 64 + 4 / (64 * 256)  # double quantisation: a byte for 64 weights


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What of a model decides over its memory; counts are numbers of parameters.

    Attributes:
        num_linear: In linear layers but the output head: what 4 bits quantise.
        num_adapter: Of the LoRA adapter.
        has_query_norm: Whether queries and keys are normalised (Qwen3).
    """

    num_parameters: int
    num_linear: int
    num_adapter: int
    hidden: int
    num_layers: int
    query_width: int
    key_width: int
    mlp: int
    vocabulary: int
    has_query_norm: bool


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes at the peak of a training step.

    Attributes:
        tokens: In one micro-batch, each sample as long as the longest.
    """

    weights: int
    adapter: int
    activations: int
    logits: int
    micro_batch_size: int
    tokens: int
    engine: str

    @property
    def total(self) -> int:
        """The sum; the allocator and CUDA itself take about a gigabyte more."""
        return self.weights + self.adapter + self.activations + self.logits


def model_shapes(config: Config) -> Shapes:
    """Return the shapes of the base and its adapter; the model is built without memory for weights.

    Raises:
        UserError: If neither a local config, the table nor the hub knows the model, or the adapter
            matches no layer.
    """
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    shapes = _transformers_config(config)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(shapes)
    return count_shapes(model, config)


def count_shapes(model: "torch.nn.Module", config: Config) -> Shapes:
    """Return the shapes of a model, on whatever device."""
    import re

    import torch

    pattern = re.compile(target_pattern(model, config.lora))
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    adapted = [m for n, m in linear.items() if pattern.fullmatch(n)]
    sizes = {n: (m.in_features, m.out_features) for n, m in linear.items() if LANGUAGE_MODEL in n}
    first = {n.rsplit(".", 1)[-1]: size for n, size in sizes.items() if ".layers.0." in n}
    text: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
    return Shapes(
        num_parameters=sum(p.numel() for p in model.parameters()),
        num_linear=sum(m.weight.numel() for n, m in linear.items() if "lm_head" not in n),
        num_adapter=sum(config.lora.r * (m.in_features + m.out_features) for m in adapted),
        hidden=text.hidden_size,
        num_layers=text.num_hidden_layers,
        query_width=first["q_proj"][1],
        key_width=first["k_proj"][1],
        mlp=first["up_proj"][1],
        vocabulary=text.vocab_size,
        has_query_norm=any("q_norm" in name for name, _ in model.named_modules()),
    )


def _transformers_config(config: Config) -> Any:
    import transformers

    source, name = model_source(config.model), config.model.name
    if not Path(source).is_dir() and name in PUBLISHED:
        family, text, vision = PUBLISHED[name]
        values = dict(zip(TEXT_FIELDS, text, strict=True))
        return getattr(transformers, f"{family}Config")(
            text_config=values,
            vision_config=vision,
            tie_word_embeddings=values["tie_word_embeddings"],
        )
    try:
        found = transformers.AutoConfig.from_pretrained(
            source,
            revision=config.model.revision,
            trust_remote_code=False,
            local_files_only=not hub_answers(),
        )
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise UserError(f"no shapes of {source}: {str(error).strip().splitlines()[0]}") from error
    found.quantization_config = None  # the meta device has nothing to quantise
    del found.quantization_config
    return found


def estimate_memory(
    shapes: Shapes, config: Config, *, longest_tokens: int, on_gpu: bool = True
) -> MemoryEstimate:
    """Return what a training step needs.

    Args:
        shapes: Of the model.
        config: Of the run.
        longest_tokens: Of the longest sample that is trained on.
        on_gpu: As the run would be there; else as on a CPU.
    """
    training, is_wide = config.training, config.model.dtype is Dtype.float32 or not on_gpu
    engine = _engine(config, on_gpu=on_gpu)
    batch_size = training.micro_batch_size
    if on_gpu and training.fit_micro_batch:
        batch_size *= training.accumulation_steps
    tokens = batch_size * longest_tokens
    width = 4 if is_wide else 2
    quantized = shapes.num_linear if config.model.load_in_4bit else 0
    per_layer = kept_bytes(shapes, engine, dropout=config.lora.dropout) * width // 2
    layers = shapes.num_layers * per_layer
    if training.gradient_checkpointing:  # each layer's input, and one layer at a time anew
        layers = shapes.num_layers * width * shapes.hidden + per_layer
    moments = 2 if training.optimizer is Optimizer.adamw_8bit and on_gpu else 8
    # Weights and gradients in 32 bits; the fused engine computes with a copy in 16 bits of both.
    copies = 8 + (4 if engine == "fused" else 0)
    bytes_of_4_bits = BYTES_OF_4_BITS + (BYTES_OF_PLAIN_SCALES if engine == "fused" else 0)
    return MemoryEstimate(
        weights=int((shapes.num_parameters - quantized) * width + quantized * bytes_of_4_bits),
        adapter=shapes.num_adapter * (copies + moments),
        activations=tokens * layers,
        logits=tokens * shapes.vocabulary * LOGIT_BYTES if engine == "plain" else 0,
        micro_batch_size=batch_size,
        tokens=tokens,
        engine=engine,
    )


def kept_bytes(shapes: Shapes, engine: str, *, dropout: float) -> int:
    """Return the bytes of a token and layer that autograd keeps, computing in 16 bits."""
    kept = KEPT["norm" if shapes.has_query_norm else "no norm", engine]
    more = KEPT_BY_DROPOUT[engine] if dropout else (0, 0, 0, 0)
    widths = (shapes.hidden, shapes.query_width, shapes.key_width, shapes.mlp)
    return sum((a + b) * width for a, b, width in zip(kept, more, widths, strict=True))


def _engine(config: Config, *, on_gpu: bool) -> str:
    if config.model.backend is Backend.unsloth:
        return "plain"
    wanted = config.training.engine
    if wanted is Engine.auto:
        return "fused" if on_gpu else "plain"
    return "plain" if wanted is Engine.plain else "fused"
