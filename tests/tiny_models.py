"""Random-weight models of every family with less than a million parameters, in the hub's layout.

Qwen2.5-VL, Qwen3-VL and Qwen3.5 shrink a real configuration and use the real chat template, Gemma 3
uses its real template, where `shared/hubfiles` has them. The other families (`MADE_HERE`) come from
transformers' configuration classes; their templates, written here, render what the model cards
show. Every tokenizer is made here: one token per byte, and the family's own special tokens.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
    "initializer_range": 0.2,
}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'image' %}IMAGE{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOLVLM = (
    "<|im_start|>{% for m in messages %}{{ m.role | capitalize }}:"
    "{{ '' if m.content[0].type == 'image' else ' ' }}{% for c in m.content %}"
    "{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
LLAVA_ONEVISION = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {% for c in m.content %}"
    "{% if c.type == 'image' %}<image>{% endif %}{% endfor %}{% for c in m.content %}"
    "{% if c.type == 'text' %}\n{{ c.text }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GLM4V = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{% for c in m.content %}"
    "{% if c.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LLAVA = (
    "{% for m in messages %}{{ m.role | upper }}: {% for c in m.content %}"
    "{% if c.type == 'image' %}<image>\n{% endif %}{% endfor %}{% for c in m.content %}"
    "{% if c.type == 'text' %}{{ c.text }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'image' %}<start_of_image>{% else %}{{ c.text | trim }}{% endif %}"
    "{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
QWEN_TOKENS = {
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
}


def tiny_tokenizer(
    template: str,
    special: dict[str, str],
    vocabulary: Path | None = None,
    *,
    eos: str,
    bos: str | None = None,
    pad: str = "<pad>",
) -> Any:
    """Return a tokenizer with one token per byte.

    Args:
        template: Of the chat.
        special: The tokenizer's attributes by name.
        vocabulary: Directory with a real byte-level vocab.json and merges.txt, for real lengths.
        eos: End of text; so for `bos` and `pad`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = models.BPE({letter: i for i, letter in enumerate(alphabet)}, [])
    if vocabulary is not None:
        lines = (vocabulary / "merges.txt").read_text(encoding="utf-8").splitlines()
        merges = [(a, b) for a, _, b in (line.partition(" ") for line in lines if line[0] != "#")]
        ids = json.loads((vocabulary / "vocab.json").read_text(encoding="utf-8"))
        bpe = models.BPE(ids, merges)
    backend = Tokenizer(bpe)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=eos,
        bos_token=bos,
        pad_token=pad,
        extra_special_tokens=special,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer


def hub_text(shared: Path, name: str) -> str:
    """Return a file of `shared/hubfiles` as text."""
    return (shared / "hubfiles" / name).read_text(encoding="utf-8")


def qwen(
    shared: Path, folder: str, template: str, kind: str, vocabulary: Path | None
) -> tuple[Any, Any]:
    """Return the configuration, shrunk from a real one, and a processor with the real template."""
    values = json.loads(hub_text(shared, f"{folder}/config.json"))
    text = hub_text(shared, template)
    if template.endswith(".json"):
        text = json.loads(text)["chat_template"]
    tokenizer = tiny_tokenizer(text, QWEN_TOKENS, vocabulary, eos="<|im_end|>")
    ids = tokenizer.convert_tokens_to_ids
    values |= {
        "tie_word_embeddings": False,
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }
    layers = values.get("text_config", {}).get("layer_types", [])
    shrunk = {
        **TEXT,
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        **({"layer_types": layers[2:4]} if layers else {}),
        **({"linear_key_head_dim": 8, "linear_value_head_dim": 8} if layers else {}),
        **({"linear_num_key_heads": 2, "linear_num_value_heads": 4} if layers else {}),
    }
    scaling = {"mrope_section": [2, 1, 1], "rope_type": "default", "rope_theta": 10000.0}
    if "text_config" in values:
        old = values["text_config"].get("rope_parameters", {})
        shrunk["rope_parameters"] = {**old, **scaling, "partial_rotary_factor": 1.0}
        values["text_config"] |= shrunk
        values["text_config"].pop("rope_scaling", None)
    else:
        values |= {**shrunk, "rope_scaling": scaling}
    depth_names = {"deepstack_visual_indexes": [0] if "qwen3_vl" in kind else []}
    values["vision_config"] |= {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": TEXT["hidden_size"],
        "num_position_embeddings": 64,
        "initializer_range": 0.2,
        **(depth_names if "3" in kind else {"fullatt_block_indexes": [0]}),
    }
    for name in ("model_type", "torch_dtype", "dtype", "quantization_config", "architectures"):
        values.pop(name, None)
        for part in ("text_config", "vision_config"):
            values.get(part, {}).pop(name, None)
    config = transformers.AutoConfig.for_model(kind, **values)
    patch = values["vision_config"]["patch_size"]
    images = transformers.Qwen2VLImageProcessor(patch_size=patch, merge_size=2)
    name = "Qwen3VL" if "3" in kind else "Qwen2_5_VL"
    videos = getattr(
        transformers, "Qwen3VLVideoProcessor" if "3" in kind else "Qwen2VLVideoProcessor"
    )
    processor = getattr(transformers, f"{name}Processor")(images, tokenizer, videos())
    processor.chat_template = text
    return config, processor


def qwen2_5_vl(shared: Path, vocabulary: Path | None = None) -> tuple[Any, Any]:
    """Qwen2.5-VL, and Lingshu, which has its architecture."""
    folder = "qwen2.5-vl-7b-instruct"
    return qwen(
        shared,
        folder=folder,
        template=f"{folder}/chat_template.json",
        kind="qwen2_5_vl",
        vocabulary=vocabulary,
    )


def qwen3_vl(shared: Path, vocabulary: Path | None = None) -> tuple[Any, Any]:
    """Qwen3-VL."""
    folder = "qwen3-vl-embedding"
    return qwen(
        shared,
        folder=folder,
        template=f"{folder}/chat_template.jinja",
        kind="qwen3_vl",
        vocabulary=vocabulary,
    )


def qwen3_5(shared: Path, vocabulary: Path | None = None) -> tuple[Any, Any]:
    """Qwen3.5, one layer of linear attention and one of full attention."""
    template = "qwen3.5_fast_qwen/chat_template.jinja"
    return qwen(
        shared,
        folder="veomni_toy/qwen3_5",
        template=template,
        kind="qwen3_5",
        vocabulary=vocabulary,
    )


def gemma3(shared: Path, vocabulary: Path | None = None) -> tuple[Any, Any]:
    """Gemma 3, and MedGemma, which has its architecture."""
    path = "gemma3_medgemma_template/chat_template.jinja"
    template = hub_text(shared, path) if (shared / "hubfiles" / path).is_file() else GEMMA
    special = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "start_token": "<start_of_turn>",
        "turn_token": "<end_of_turn>",
    }
    tokenizer = tiny_tokenizer(template, special, vocabulary, eos="<eos>", bos="<bos>")
    config = transformers.Gemma3Config(
        tie_word_embeddings=False,
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "query_pre_attn_scalar": 8,
            "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        vision_config={**VISION, "vision_use_head": False},
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    images = transformers.Gemma3ImageProcessor(size={"height": 28, "width": 28})
    return config, transformers.Gemma3Processor(
        images, tokenizer, chat_template=template, image_seq_length=4
    )


def internvl(shared: Path, vocabulary: Path | None = None) -> tuple[Any, Any]:
    """InternVL 3 in the layout of its `-hf` repositories."""
    special = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    template = CHATML.replace("IMAGE", "<IMG_CONTEXT>\n")
    tokenizer = tiny_tokenizer(template, special, vocabulary, eos="<|im_end|>")
    config = transformers.InternVLConfig(
        tie_word_embeddings=False,
        text_config={**TEXT, "model_type": "qwen2", "vocab_size": len(tokenizer)},
        vision_config={**VISION, "image_size": [28, 28], "patch_size": [7, 7]},
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    images = transformers.GotOcr2ImageProcessor(
        size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=4
    )
    videos = transformers.InternVLVideoProcessor()
    return config, transformers.InternVLProcessor(
        images, tokenizer, videos, image_seq_length=4, chat_template=template
    )


def smolvlm(shared: Path, vocabulary: Path | None = None) -> tuple[Any, Any]:
    """SmolVLM 2, which cuts pictures into tiles."""
    special = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    tokenizer = tiny_tokenizer(
        SMOLVLM, special, vocabulary, eos="<end_of_utterance>", bos="<|im_start|>", pad="<|im_end|>"
    )
    config = transformers.SmolVLMConfig(
        tie_word_embeddings=False,
        text_config={
            **TEXT,
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config=VISION,
        scale_factor=2,
        image_token_id=tokenizer.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    images = transformers.SmolVLMImageProcessor(
        size={"longest_edge": 56}, max_image_size={"longest_edge": 28}, do_image_splitting=True
    )
    videos = transformers.SmolVLMVideoProcessor()
    return config, transformers.SmolVLMProcessor(
        images, tokenizer, videos, image_seq_len=4, chat_template=SMOLVLM
    )


def llava_onevision(shared: Path, vocabulary: Path | None = None) -> tuple[Any, Any]:
    """LLaVA-OneVision, which pads tiles across a batch."""
    special = {"image_token": "<image>", "video_token": "<video>"}
    tokenizer = tiny_tokenizer(LLAVA_ONEVISION, special, vocabulary, eos="<|im_end|>")
    pinpoints = [[28, 28], [28, 56], [56, 28], [56, 56]]
    config = transformers.LlavaOnevisionConfig(
        tie_word_embeddings=False,
        text_config={**TEXT, "model_type": "qwen2", "vocab_size": len(tokenizer)},
        vision_config={**VISION, "model_type": "siglip_vision_model", "vision_use_head": False},
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=pinpoints,
    )
    images = transformers.LlavaOnevisionImageProcessor(
        size={"height": 28, "width": 28}, image_grid_pinpoints=pinpoints
    )
    videos = transformers.LlavaOnevisionVideoProcessor()
    return config, transformers.LlavaOnevisionProcessor(
        images,
        tokenizer,
        videos,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=LLAVA_ONEVISION,
    )


def glm4v(shared: Path, vocabulary: Path | None = None) -> tuple[Any, Any]:
    """GLM-4V, whose template writes no end of turn."""
    special = {"image_token": "<|image|>", "video_token": "<|video|>"}
    tokenizer = tiny_tokenizer(GLM4V, special, vocabulary, eos="<|endoftext|>")
    names = ["<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": [*names, "<|user|>"]})
    ids = dict(zip(names, tokenizer.convert_tokens_to_ids(names), strict=True))
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    config = transformers.Glm4vConfig(
        tie_word_embeddings=False,
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "rope_parameters": {**rope, "partial_rotary_factor": 1.0},
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            **{"depth": 2, "hidden_size": 16, "num_heads": 2, "image_size": 28, "patch_size": 7},
            **{"out_hidden_size": 32, "intermediate_size": 32, "initializer_range": 0.2},
        },
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        image_start_token_id=ids["<|begin_of_image|>"],
        image_end_token_id=ids["<|end_of_image|>"],
        video_start_token_id=ids["<|begin_of_video|>"],
        video_end_token_id=ids["<|end_of_video|>"],
    )
    images = transformers.Glm4vImageProcessor(
        size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56}, patch_size=7
    )
    videos = transformers.Glm4vVideoProcessor(patch_size=7)
    return config, transformers.Glm4vProcessor(images, tokenizer, videos, chat_template=GLM4V)


def llava(shared: Path, vocabulary: Path | None = None) -> tuple[Any, Any]:
    """LLaVA 1.5, whose template writes names of speakers and no end of turn."""
    special = {"image_token": "<image>"}
    tokenizer = tiny_tokenizer(LLAVA, special, vocabulary, eos="</s>", bos="<s>")
    config = transformers.LlavaConfig(
        tie_word_embeddings=False,
        text_config={**TEXT, "model_type": "llama", "vocab_size": len(tokenizer)},
        vision_config={**VISION, "model_type": "clip_vision_model"},
        image_token_index=tokenizer.image_token_id,
        image_seq_length=16,
    )
    images = transformers.CLIPImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    return config, transformers.LlavaProcessor(
        images,
        tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA,
    )


Builder = Callable[..., tuple[Any, Any]]
FAMILIES: dict[str, Builder] = {
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_5": qwen3_5,
    "gemma3": gemma3,
    "internvl": internvl,
    "smolvlm": smolvlm,
    "llava_onevision": llava_onevision,
    "glm4v": glm4v,
    "llava": llava,
}
MADE_HERE = (
    "gemma3",
    "internvl",
    "smolvlm",
    "llava_onevision",
    "glm4v",
    "llava",
)  # need no file of `shared`


def save_tiny(family: str, directory: Path, shared: Path) -> None:
    """Write configuration, random weights and processor of a family."""
    config, processor = FAMILIES[family](shared)
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
