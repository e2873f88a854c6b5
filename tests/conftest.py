import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvqa.collate import Encoder
from medvqa.config import LoraConfig, ModelConfig, SourceConfig
from medvqa.data import load_examples
from medvqa.model import LoadedModel, load_model

ROOT = Path(__file__).parents[1]
TINY = ModelConfig(name="medvqa/tiny", max_pixels=16384, max_length_tokens=512)


@pytest.fixture(scope="session")
def shared() -> Path:
    place = Path(os.environ.get("MEDVQA_SHARED", ROOT.parent / "shared"))
    if not (place / "data").is_dir():
        pytest.skip(f"real data is absent: no {place / 'data'} (set MEDVQA_SHARED)")
    return place


@pytest.fixture
def tiny() -> LoadedModel:
    return load_model(TINY, LoraConfig(rank=4, alpha=8), gradient_checkpointing=False, seed=0)


@pytest.fixture
def encoder(tiny) -> Encoder:
    return Encoder(tiny.processor, max_length_tokens=512)


@pytest.fixture(scope="session")
def phantoms():
    return load_examples(SourceConfig(name="phantom", split="test"), seed=0)


SMOKE = (
    "experiment=smoke",
    "curriculum=open_first",
    "training.max_steps=12",
    "training.checkpoint_every=4",
)


def command(directory: Path, *overrides: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), f"hydra.run.dir={directory}", *overrides]


def environment() -> dict[str, str]:
    """No account of the machine's, no GPU."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    return {**kept, "CUDA_VISIBLE_DEVICES": ""}


def call(directory: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(directory, *overrides),
        capture_output=True,
        text=True,
        check=False,
        cwd=directory.parent,
        env=environment(),
    )


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run as a process, tracked offline: its directory and what the command said."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    answer = call(directory, *SMOKE, "tracking.mode=offline")
    assert answer.returncode == 0, answer.stderr
    return directory, answer


@dataclass(frozen=True)
class PngImage:
    """A picture from an array, encoded as PNG."""

    name: str
    pixels: np.ndarray

    def read(self) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(self.pixels).save(buffer, "PNG")
        return buffer.getvalue()
