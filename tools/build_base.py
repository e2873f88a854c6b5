"""Small bases from scratch: Qwen3-VL's architecture, pre-trained on descriptions of pictures.

A base learns to describe pictures in words; the question-and-answer form is left to fine-tuning.
`tiny` is embedded in the package; `small` serves the study on real pictures.
"""

import argparse
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from medvqa.config.data import SourceConfig
from medvqa.config.errors import UserError
from medvqa.data.example import Example
from medvqa.data.pool import load_examples
from medvqa.models.encode import Encoder
from medvqa.models.patches import Patches
from medvqa.models.source import EMBEDDED
from tools.base_model import SHAPES, build_model, build_processor, build_tokenizer
from tools.base_training import pretrain
from tools.pretraining_texts import pretraining_examples, vocabulary_texts

log = logging.getLogger(__name__)


def spoken_rows(examples: Sequence[Example]) -> Iterator[Example]:
    """Yield real rows as plain text about their pictures: three prompts per row, none a question.

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


def _parser() -> argparse.ArgumentParser:
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
    return parser


def main_build(argv: Sequence[str]) -> int:
    """Build a small base: tokenizer, architecture, pre-training, weights in bfloat16."""
    options = _parser().parse_args(argv)
    output = options.output or EMBEDDED.get(f"medvqa/{options.size}")
    if output is None:
        raise UserError(f"--size {options.size} is not embedded: say where with --output")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    build(options, output)
    return 0


def build(options: argparse.Namespace, output: Path) -> None:
    """Build the base and write it into the directory."""
    import torch

    real: list[Example] = []
    if options.vqa_rad:
        source = SourceConfig(name="vqa_rad", path=str(options.vqa_rad), split="train_disjoint")
        real = list(spoken_rows(load_examples(source, seed=0)))
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


if __name__ == "__main__":
    raise SystemExit(main_build(sys.argv[1:]))
