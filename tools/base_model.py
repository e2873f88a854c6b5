"""Tokenizer, processor and architecture of a small base: Qwen3-VL's, with random weights."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a base; patches are 16 pixels wide and merged 2 x 2.

    Attributes:
        text: Width, MLP width, layers, heads, key-value heads.
        vision: Width, MLP width, blocks, heads; the block whose states go deep into the text model.
        mrope_section: Half a head's dimensions by time, height, width.
        side_px: Side of the largest picture that is not scaled down.
    """

    vocabulary_size: int
    text: tuple[int, int, int, int, int]
    vision: tuple[int, int, int, int]
    deepstack: int
    mrope_section: tuple[int, int, int]
    side_px: int


SHAPES = {
    "tiny": Shape(
        vocabulary_size=1024,
        text=(192, 512, 4, 6, 3),
        vision=(144, 432, 4, 6),
        deepstack=1,
        mrope_section=(6, 5, 5),
        side_px=128,
    ),
    "small": Shape(
        vocabulary_size=4096,
        text=(512, 1408, 8, 8, 4),
        vision=(384, 1152, 6, 6),
        deepstack=2,
        mrope_section=(12, 10, 10),
        side_px=256,
    ),
}


def build_tokenizer(texts: Iterable[str], *, vocabulary_size: int) -> Any:
    """Return a byte-level BPE tokenizer, so that any text, medical or not, can be encoded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[PAD, START, END, *VISION],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, model_max_length=4096
    )


def build_processor(tokenizer: Any, shape: Shape) -> Any:
    """Return a Qwen3-VL processor around the tokenizer."""
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            patch_size=16,
            size={"shortest_edge": 64 * 64, "longest_edge": shape.side_px**2},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: Any, shape: Shape, *, seed: int) -> Any:
    """Return a randomly initialised Qwen3-VL of the shape in float32."""
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (*VISION, PAD, END)}
    special = {"eos_token_id": ids[END], "pad_token_id": ids[PAD]}
    config = Qwen3VLConfig(
        text_config={"vocab_size": len(tokenizer), **special, **_text_config(shape)},
        vision_config=_vision_config(shape),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
        **special,
    )
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config)
    model.generation_config.update(**special)
    return model


def _text_config(shape: Shape) -> dict[str, Any]:
    width, mlp, layers, heads, kv_heads = shape.text
    return {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 2 * sum(shape.mrope_section),
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": list(shape.mrope_section),
            "mrope_interleaved": True,
        },
    }


def _vision_config(shape: Shape) -> dict[str, Any]:
    width, mlp, blocks, heads = shape.vision
    return {
        "depth": blocks,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_heads": heads,
        "patch_size": 16,
        "out_hidden_size": shape.text[0],
        "num_position_embeddings": (shape.side_px // 16) ** 2,
        "deepstack_visual_indexes": [shape.deepstack],
    }
