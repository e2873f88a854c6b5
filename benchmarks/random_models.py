"""Write a model with random weights at its real shapes, in the hub's layout.

    python -m benchmarks.random_models qwen3_vl_8b DIRECTORY --tokenizer PATH/qwen.tiktoken
    python -m benchmarks.random_models gemma3_4b DIRECTORY --shared ../shared

`shapes.yaml` has the shapes. Speed and memory are then real; answers are noise. The vocabulary
gives realistic token counts. The PyPI package dashscope has that of the first four models
(resources/qwen.tiktoken). The vocabularies of the others are in `hubfiles` of the shared directory.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from transformers.convert_slow_tokenizer import TikTokenConverter

from benchmarks.runs import parser_of
from tools.base_model import CHAT_TEMPLATE

SHAPES: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("shapes.yaml").read_text())
SPECIAL_TOKENS = [
    f"<|{name}|>"
    for name in (
        *("endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end", "box_start"),
        *("box_end", "quad_start", "quad_end", "vision_start", "vision_end", "vision_pad"),
        *("image_pad", "video_pad"),
    )
]


def of_class(shape: dict[str, Any], vocabulary: Path) -> tuple[Any, Any]:
    """Return configuration and processor of a Qwen-VL."""
    converter = TikTokenConverter(str(vocabulary), extra_special_tokens=SPECIAL_TOKENS)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=converter.converted(), pad_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    is_third, prefix, text = shape["class"] == "Qwen3VL", shape["class"], shape["text"]
    vision = {"num_heads": 16, **shape["vision"]}
    if is_third:
        rope = {"rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
        text = {**text, "head_dim": 128}
        vision["out_hidden_size"] = text["hidden_size"]
    else:
        rope = {"rope_theta": 1e6, "mrope_section": [16, 24, 24]}
        vision |= {"patch_size": 14, "mlp_ratio": 4, "hidden_size": text["hidden_size"]}
    config = getattr(transformers, f"{prefix}Config")(
        text_config={**text, "rope_parameters": {"rope_type": "default", **rope}},
        vision_config=vision,
        tie_word_embeddings=text["tie_word_embeddings"],
        **{
            f"{token}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>")
            for token, name in (
                *(("image", "image_pad"), ("video", "video_pad")),
                ("vision_start", "vision_start"),
            )
        },
    )
    processor = getattr(transformers, f"{prefix}Processor")(
        image_processor=transformers.Qwen2VLImageProcessor(patch_size=16 if is_third else 14),
        tokenizer=tokenizer,
        video_processor=getattr(transformers, f"{prefix}VideoProcessor")(),
        chat_template=CHAT_TEMPLATE,
    )
    return config, processor


def of_family(shape: dict[str, Any], shared: Path) -> tuple[Any, Any]:
    """Return configuration and processor of a family of the tests, at the full shape."""
    from tests.tiny_models import FAMILIES

    vocabulary = shared / "hubfiles" / "qwen2.5-vl-7b-instruct"
    tiny, processor = FAMILIES[shape["family"]](shared, vocabulary)
    values = tiny.to_dict()
    for name in ("transformers_version", "model_type"):
        values.pop(name)
    text, vision = values["text_config"], values["vision_config"]
    text |= {**shape["text"], "initializer_range": 0.02}
    text.pop("layer_types", None)  # the family's own for the real number of layers
    if "rope" in shape:
        text["rope_parameters"] |= shape["rope"]
    vision |= {**shape["vision"], "initializer_range": 0.02}
    config = type(tiny)(**(values | shape.get("top", {})))
    images = processor.image_processor
    for option, value in shape.get("pictures", {}).items():
        is_size, present = isinstance(value, dict), getattr(images, option)
        setattr(images, option, type(present)(**value) if is_size else value)
    if "processor" in shape:
        parts = [images, processor.tokenizer]
        parts += [processor.video_processor] if hasattr(processor, "video_processor") else []
        template = processor.chat_template or processor.tokenizer.chat_template
        processor = type(processor)(*parts, chat_template=template, **shape["processor"])
    return config, processor


def main() -> None:
    """Build the model in bfloat16 on the fastest device and save it with its processor."""
    parser = parser_of(__doc__)
    parser.add_argument("name", choices=SHAPES)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--shared", type=Path)
    options = parser.parse_args()
    shape = SHAPES[options.name]
    of, option = (of_family, "shared") if "family" in shape else (of_class, "tokenizer")
    if getattr(options, option) is None:
        parser.error(f"{options.name} needs --{option}")
    config, processor = of(shape, getattr(options, option))
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(options.directory, max_shard_size="5GB")  # as on the hub
    processor.save_pretrained(options.directory)


if __name__ == "__main__":
    main()
