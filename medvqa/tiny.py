"""The embedded tiny base: a real Qwen3-VL architecture, pre-trained by `medvqa build-tiny`.

It learns to describe phantoms in words; the question-and-answer form is left to fine-tuning.
"""

import argparse
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from medvqa.model import EMBEDDED
from medvqa.progress import track

log = logging.getLogger(__name__)

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


def build_tokenizer(texts: Iterable[str], *, vocabulary_size: int = 1024) -> Any:
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


def build_processor(tokenizer: Any) -> Any:
    """Return a Qwen3-VL processor around the tokenizer, with patches of 16 pixels merged 2 x 2."""
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            patch_size=16,
            size={"shortest_edge": 64 * 64, "longest_edge": 128 * 128},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: Any, *, seed: int) -> Any:
    """Return a randomly initialised Qwen3-VL of about four million parameters in float32."""
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (*VISION, PAD, END)}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 32,
            "max_position_embeddings": 4096,
            "pad_token_id": ids[PAD],
            "eos_token_id": ids[END],
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 4,
            "hidden_size": 144,
            "intermediate_size": 432,
            "num_heads": 6,
            "patch_size": 16,
            "out_hidden_size": 192,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [1],
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
    encoder: Any,
    texts: Sequence[Any],
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    device: str,
) -> float:
    """Train all weights on phantom descriptions; return the mean loss of the last 50 steps.

    AdamW, cosine schedule after 5 % warm-up, gradient norm at most 1.
    """
    import torch
    from transformers import get_cosine_schedule_with_warmup

    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, num_steps // 20, num_steps)
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    for _ in track(range(num_steps), description="pre-training"):
        chosen = torch.randint(len(texts), (batch_size,), generator=generator).tolist()
        batch = encoder.training_batch([encoder.encode(texts[i]) for i in chosen])
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss = model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        if len(losses) % 200 == 0:
            log.info("step %d: loss %.3f", len(losses), sum(losses[-50:]) / 50)
    return sum(losses[-50:]) / len(losses[-50:])


def main_build(argv: Sequence[str]) -> int:
    """Build the embedded base: tokenizer, architecture, pre-training, weights in bfloat16."""
    parser = argparse.ArgumentParser("medvqa build-tiny", description=main_build.__doc__)
    parser.add_argument("--output", type=Path, default=EMBEDDED["medvqa/tiny"])
    parser.add_argument("--steps", type=int, default=3500)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--scenes", type=int, default=8000, help="phantom scenes to describe")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    import torch

    from medvqa.collate import Encoder
    from medvqa.data.phantom import pretraining_examples, vocabulary_texts

    texts = list(pretraining_examples(options.scenes, seed=options.seed))
    tokenizer = build_tokenizer(vocabulary_texts())
    processor = build_processor(tokenizer)
    model = build_model(tokenizer, seed=options.seed)
    loss = pretrain(
        model,
        Encoder(processor, max_length_tokens=512, max_cached_images=50_000),
        texts,
        num_steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    processor.save_pretrained(options.output)
    model.to(torch.bfloat16).save_pretrained(options.output)
    log.info("loss of the last steps %.3f; wrote %s", loss, options.output)
    return 0
