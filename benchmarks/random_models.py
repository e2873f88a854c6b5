"""Write one of the four models with random weights at its real shapes, in the hub's layout.

    python benchmarks/random_models.py qwen3_vl_8b DIRECTORY --tokenizer PATH/qwen.tiktoken

Speed and memory are then real; answers are noise. The tokenizer's vocabulary ships in the PyPI
package dashscope (resources/qwen.tiktoken); it gives realistic token counts.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.convert_slow_tokenizer import TikTokenConverter

from tools.build_base import CHAT_TEMPLATE

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
TEXT_FIELDS = [
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("intermediate_size", "tie_word_embeddings", "vocab_size"),
]
VISION3_FIELDS = ["hidden_size", "depth", "intermediate_size", "deepstack_visual_indexes"]
SHAPES: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "qwen3_vl_8b": ((4096, 36, 32, 8, 12288, False, 151936), (1152, 27, 4304, [8, 16, 24])),
    "qwen3_vl_2b": ((2048, 28, 16, 8, 6144, True, 151936), (1024, 24, 4096, [5, 11, 17])),
    "qwen2_vl_7b": ((3584, 28, 28, 4, 18944, False, 152064), (1280, 32)),
    "qwen2_vl_2b_4bit": ((1536, 28, 12, 2, 8960, True, 151936), (1280, 32)),
}


def build_tokenizer(vocabulary: Path) -> Any:
    """Return Qwen's byte-level tokenizer from its tiktoken file."""
    fast = TikTokenConverter(
        vocab_file=str(vocabulary), extra_special_tokens=SPECIAL_TOKENS
    ).converted()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="<|endoftext|>", eos_token="<|im_end|>"
    )


def build_config(name: str, ids: dict[str, int]) -> Any:
    """Return the model's configuration (DESIGN: shapes of the four models)."""
    text_values, vision_values = SHAPES[name]
    text = dict(zip(TEXT_FIELDS, text_values, strict=True))
    tokens = {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": text["tie_word_embeddings"],
    }
    if name.startswith("qwen3"):
        rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20],
                "mrope_interleaved": True}  # fmt: skip
        vision = dict(zip(VISION3_FIELDS, vision_values, strict=True))
        return transformers.Qwen3VLConfig(
            text_config={**text, "head_dim": 128, "rope_parameters": rope},
            vision_config={**vision, "num_heads": 16, "out_hidden_size": text["hidden_size"]},
            **tokens,
        )
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    width, depth = vision_values
    return transformers.Qwen2VLConfig(
        text_config={**text, "rope_parameters": rope},
        vision_config={
            "embed_dim": width,
            "depth": depth,
            "num_heads": 16,
            "patch_size": 14,
            "mlp_ratio": 4,
            "hidden_size": text["hidden_size"],
        },
        **tokens,
    )


def build_model(name: str, tokenizer: Any) -> Any:
    """Return the model with random bfloat16 weights on the fastest device."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    prefix = "Qwen3VL" if name.startswith("qwen3") else "Qwen2VL"
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = getattr(transformers, f"{prefix}ForConditionalGeneration")(build_config(name, ids))
    torch.set_default_dtype(before)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    return model


def build_processor(name: str, tokenizer: Any) -> Any:
    """Return the model's processor around the tokenizer."""
    is_third = name.startswith("qwen3")
    prefix = "Qwen3VL" if is_third else "Qwen2VL"
    return getattr(transformers, f"{prefix}Processor")(
        image_processor=transformers.Qwen2VLImageProcessor(patch_size=16 if is_third else 14),
        tokenizer=tokenizer,
        video_processor=getattr(transformers, f"{prefix}VideoProcessor")(),
        chat_template=CHAT_TEMPLATE,
    )


def main() -> None:
    """Build the model and save it with its processor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=SHAPES)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    options = parser.parse_args()
    tokenizer = build_tokenizer(options.tokenizer)
    model = build_model(options.name, tokenizer)
    model.save_pretrained(options.directory, max_shard_size="5GB")  # as on the hub
    build_processor(options.name, tokenizer).save_pretrained(options.directory)


if __name__ == "__main__":
    main()
