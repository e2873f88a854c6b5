"""The shapes of a model that decide over its memory, without its weights."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvqa.config.errors import UserError
from medvqa.config.schema import Config
from medvqa.models.activations import LayerShapes
from medvqa.models.adapter import linear_layers, target_pattern
from medvqa.models.families.layers import family_of
from medvqa.models.source import hub_answers, model_source

if TYPE_CHECKING:
    import torch

# Shapes of the published models, so that an estimate needs no network. Text: hidden size, layers,
# heads, key-value heads, MLP, tied embeddings, vocabulary. Vision: names as in the config.
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


@dataclass(frozen=True, kw_only=True)
class Shapes(LayerShapes):
    """What of a model decides over its memory; counts are numbers of parameters.

    Attributes:
        family: The `model_type` of transformers' configuration.
        num_linear: In linear layers but the output head: what 4 bits quantise.
        num_adapter: Of the LoRA adapter.
    """

    family: str
    num_parameters: int
    num_linear: int
    num_adapter: int
    num_layers: int
    vocabulary: int


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
    import torch

    pattern = re.compile(target_pattern(model, config.lora))
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    adapted = [m for n, m in linear.items() if pattern.fullmatch(n)]
    text_layers = linear_layers(model, family_of(model).language_model)
    sizes = {n.rsplit(".", 1)[-1]: linear[n] for n in reversed(text_layers)}
    first = {name: (m.in_features, m.out_features) for name, m in sizes.items()}
    text: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
    return Shapes(
        family=model.config.model_type,  # type: ignore[union-attr, arg-type]
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
        auto_config = transformers.AutoConfig.from_pretrained(
            source,
            revision=config.model.revision,
            trust_remote_code=False,
            local_files_only=not hub_answers(),
        )
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise UserError(f"no shapes of {source}: {str(error).strip().splitlines()[0]}") from error
    auto_config.quantization_config = None  # the meta device has nothing to quantise
    del auto_config.quantization_config
    return auto_config
