"""Small bases from scratch: Qwen3-VL's architecture, pre-trained on descriptions of pictures.

A base learns to describe pictures in words; the question-and-answer form is left to fine-tuning.
`tiny` is embedded in the package; `small` serves the study on real pictures.
"""

import argparse
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvqa.config.data import SourceConfig
from medvqa.config.errors import UserError
from medvqa.data.example import Example
from medvqa.data.pool import load_examples
from medvqa.data.prefetch import ahead
from medvqa.models.encode import Encoder
from medvqa.models.patches import Patches
from medvqa.models.sample import Sample
from medvqa.models.source import EMBEDDED
from medvqa.tracking.progress import track

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

ENCODING_PROCESSES = min(12, os.cpu_count() or 1)
WARM_UP = 0.05
MAX_SKIPPED_FRACTION = 0.01

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
    width, mlp, layers, heads, kv_heads = shape.text
    vision_width, vision_mlp, blocks, vision_heads = shape.vision
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": 2 * sum(shape.mrope_section),
            "max_position_embeddings": 4096,
            "pad_token_id": ids[PAD],
            "eos_token_id": ids[END],
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": list(shape.mrope_section),
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": blocks,
            "hidden_size": vision_width,
            "intermediate_size": vision_mlp,
            "num_heads": vision_heads,
            "patch_size": 16,
            "out_hidden_size": width,
            "num_position_embeddings": (shape.side_px // 16) ** 2,
            "deepstack_visual_indexes": [shape.deepstack],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
        eos_token_id=ids[END],
        pad_token_id=ids[PAD],
    )
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids[END]
    model.generation_config.pad_token_id = ids[PAD]
    return model


def pretrain(
    model: Any,
    encoder: Encoder,
    texts: Sequence[Example],
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    device: str,
    max_seconds: float = math.inf,
) -> float:
    """Train all weights on the texts; return the mean loss of the last 50 steps.

    AdamW, cosine schedule after 5 % warm-up, gradient norm at most 1. Where `max_seconds` comes
    before the last step, the learning rate falls in time for it, and the log says at which step.
    """
    import torch

    model.to(device).train()
    sample_of = _encoded_when_asked(encoder, texts)
    if device == "cuda":
        sample_of = _encoded_at_once(encoder, texts, device)
        # Image by image, most of a step would be waiting for launches.
        attend_to_all_pictures_at_once(model.model.visual)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
    generator = torch.Generator().manual_seed(seed)
    losses: list[float | None] = []
    draws = torch.randint(len(texts), (num_steps, batch_size), generator=generator).tolist()
    started = time.monotonic()
    for step in track(range(num_steps), description="pre-training"):
        spent = (time.monotonic() - started) / max_seconds
        if step and spent >= 1:
            log.warning("%.0f s are over after %d of %d steps", max_seconds, step, num_steps)
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * _factor(max(step / num_steps, spent))
        batch = encoder.training_batch([sample_of(index) for index in draws[step]])
        inputs = {name: tensor.to(device) for name, tensor in batch.items()}
        losses.append(_step(model, optimizer, inputs))
        if losses.count(None) > MAX_SKIPPED_FRACTION * num_steps:
            raise UserError(
                f"{losses.count(None)} steps had gradients that are not finite; lower "
                "--learning-rate"
            )
        if len(losses) % 100 == 0:
            log.info("step %d: loss %.3f", len(losses), _mean_of_last(losses))
    if None in losses:
        log.warning("%d steps were skipped: gradients not finite", losses.count(None))
    return _mean_of_last(losses)


def attend_to_all_pictures_at_once(tower: Any) -> None:
    """Give transformers' vision tower PyTorch's flash attention, under a name that asks for it."""
    from torch.nn.attention.varlen import varlen_attn
    from transformers import AttentionInterface

    def attend(
        module: Any, query: Any, key: Any, value: Any, attention_mask: None, **options: Any
    ) -> tuple[Any, None]:
        q, k, v = (tensor.squeeze(0).transpose(0, 1).contiguous() for tensor in (query, key, value))
        starts = options["cu_seq_lens_q"].to(torch.int32)
        longest = int(options["max_length_q"])
        output: Any = varlen_attn(q, k, v, starts, starts, longest, longest, scale=module.scaling)
        return output.unsqueeze(0), None

    import torch

    AttentionInterface.register("varlen_flash", attend)
    tower.config._attn_implementation = "varlen_flash"


def _mean_of_last(losses: Sequence[float | None]) -> float:
    finite = [loss for loss in losses[-50:] if loss is not None]
    return sum(finite) / len(finite)


def _step(model: Any, optimizer: Any, inputs: "dict[str, torch.Tensor]") -> float | None:
    """Step and return the loss; None, and no step, where a gradient is not finite."""
    import torch

    kind = inputs["input_ids"].device.type
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=kind == "cuda"):
        loss = model(**inputs).loss
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    is_finite = bool(torch.isfinite(norm))
    if is_finite:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach()) if is_finite else None


def _factor(progress: float) -> float:
    """Return the learning rate's share at a place in [0, 1) of the training."""
    if progress < WARM_UP:
        return (progress + WARM_UP / 50) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def _encoded_when_asked(encoder: Encoder, texts: Sequence[Example]) -> Callable[[int], Sample]:
    return lambda index: encoder.encode(texts[index])


def _encoded_at_once(
    encoder: Encoder, texts: Sequence[Example], device: str
) -> Callable[[int], Sample]:
    """Encode everything before the first step; each picture lies on the device once.

    A step of a small model takes less than reading its batch of patches from another process.
    """
    import torch

    one_each = list({text.image_ids: text for text in texts}.values())
    log.info("encoding %d pictures and %d texts about them", len(one_each), len(texts))
    pictures: dict[tuple[str, ...], Sample] = {}
    for sample in ahead(encoder.encode, one_each, num_threads=ENCODING_PROCESSES):
        assert sample.pixel_values is not None
        pixels = sample.pixel_values.to(device, torch.bfloat16)
        pictures[sample.image_keys] = replace(sample, pixel_values=pixels)

    def words_of(text: Any) -> tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]:
        # No tensor: each that a process gives back holds a file open until it is dropped.
        sample = encoder.encode(text)
        return sample.image_keys, sample.prompt_ids, sample.answer_ids

    # The processes are copies of this one, so they find the pictures in the encoder's cache.
    words: Iterable[Any] = torch.utils.data.DataLoader(
        texts,  # type: ignore[arg-type]
        batch_size=None,
        collate_fn=words_of,
        num_workers=ENCODING_PROCESSES,
    )
    samples = [
        replace(pictures[keys], prompt_ids=prompt_ids, answer_ids=answer_ids)
        for keys, prompt_ids, answer_ids in words
    ]
    return samples.__getitem__


def spoken_rows(examples: Sequence[Example]) -> Iterator[Example]:
    """Yield real rows as plain text about their pictures: three prompts a row, none a question.

    The words of question and answer become known, and which picture they belong to; answering is
    left to fine-tuning.
    """
    for example in examples:
        answer = example.answers[0]
        for part, (prompt, text) in enumerate(
            (
                ("a remark on the image:", f"{example.question} {answer}"),
                ("asked about the image:", example.question),
                ("said about the image:", answer),
            )
        ):
            yield replace(example, id=f"{example.id}-{part}", question=prompt, answers=(text,))


def main_build(argv: Sequence[str]) -> int:
    """Build a small base: tokenizer, architecture, pre-training, weights in bfloat16."""
    parser = argparse.ArgumentParser("python -m tools.build_base", description=main_build.__doc__)
    parser.add_argument("--size", choices=SHAPES, default="tiny")
    parser.add_argument("--output", type=Path, help="the embedded place for tiny")
    parser.add_argument("--steps", type=int, default=3500)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--scenes", type=int, default=8000, help="phantom scenes to describe")
    parser.add_argument(
        "--vqa-rad", type=Path, help="VQA-RAD's files: its image-disjoint training rows, too"
    )
    parser.add_argument(
        "--max-seconds", type=float, default=math.inf, help="of training, where time is lent"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    output = options.output or EMBEDDED.get(f"medvqa/{options.size}")
    if output is None:
        raise UserError(f"--size {options.size} is not embedded: say where with --output")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    real: list[Example] = []
    if options.vqa_rad:
        source = SourceConfig(name="vqa_rad", path=str(options.vqa_rad), split="train_disjoint")
        real = list(spoken_rows(load_examples(source, seed=0)))

    import torch

    from tools.pretraining_texts import pretraining_examples, vocabulary_texts

    shape = SHAPES[options.size]
    texts = [*pretraining_examples(options.scenes, seed=options.seed), *real]
    words = [*vocabulary_texts(), *(f"{e.question}\n{e.answers[0]}" for e in real)]
    tokenizer = build_tokenizer(words, vocabulary_size=shape.vocabulary_size)
    processor = build_processor(tokenizer, shape)
    model = build_model(tokenizer, shape, seed=options.seed)
    log.info("%.1f million parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    log.info("%d texts, %d of them about real pictures", len(texts), len(real))
    loss = pretrain(
        model,
        Encoder(processor, max_length_tokens=1024, patches=Patches(max_images=50_000)),
        texts,
        num_steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
        device="cuda" if torch.cuda.is_available() else "cpu",
        max_seconds=options.max_seconds,
    )
    processor.save_pretrained(output)
    model.to(torch.bfloat16).save_pretrained(output)
    log.info("loss of the last steps %.3f; wrote %s", loss, output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main_build(sys.argv[1:]))
