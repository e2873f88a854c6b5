"""Training and answering rates of the engines, on one model with random weights at real shapes.

    python benchmarks/engine.py qwen3_vl_8b --vqa-rad DIR --tokenizer PATH/qwen.tiktoken --out FILE
    python benchmarks/engine.py tiny --vqa-rad DIR --out FILE          # a CPU, for correctness

Nothing is saved or loaded: the model is made on the device, so that a short visit suffices. Every
engine computes the same step; the loss of the first step is in the result, beside its rate. Answers
of random weights are noise, and are compared with each other only.
"""

import argparse
import json
import logging
import platform
import subprocess
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from medvqa.collate import Encoder
from medvqa.config import (
    Backend,
    CurriculumConfig,
    Decoding,
    Engine,
    Filter,
    LoraConfig,
    ModelConfig,
    Optimizer,
    SourceConfig,
    StageConfig,
    TrainingConfig,
)
from medvqa.curriculum import plan_curriculum
from medvqa.data import load_examples
from medvqa.generation import generate
from medvqa.model import LoadedModel, load_model, reset_adapter, set_pixel_budget, target_pattern
from medvqa.training import Trainer

logging.basicConfig(level=logging.INFO, format="%(message)s")
WARM_UP_STEPS = 3


def build(name: str, tokenizer_file: Path | None) -> LoadedModel:
    """Return the model with a fresh adapter, on the GPU where there is one."""
    if name == "tiny":
        config = ModelConfig(name="medvqa/tiny", max_pixels=16384, max_length_tokens=512)
        return load_model(config, LoraConfig(), gradient_checkpointing=False, seed=0)
    from random_models import build_model, build_processor, build_tokenizer

    assert tokenizer_file is not None, "give --tokenizer"
    tokenizer = build_tokenizer(tokenizer_file)
    base = build_model(name, tokenizer)
    base.requires_grad_(False)
    adapter = peft.LoraConfig(
        r=16,
        lora_alpha=32,
        task_type="CAUSAL_LM",
        target_modules=target_pattern(base, LoraConfig()),
    )
    model = peft.get_peft_model(base, adapter)
    reset_adapter(model, seed=0)
    processor = build_processor(name, tokenizer)
    set_pixel_budget(processor, ModelConfig(name=name, max_pixels=512 * 512))
    return LoadedModel(
        model, processor, torch.device("cuda:0"), torch.bfloat16, Backend.transformers, name, False
    )


def train_rate(
    loaded: LoadedModel, examples: Any, engine: Engine, micro: int, num_steps: int
) -> dict[str, Any]:
    """Return samples a second over the steps after the warm-up, and the first step's loss."""
    reset_adapter(loaded.model, seed=0)
    config = TrainingConfig(
        max_steps=WARM_UP_STEPS + num_steps,
        micro_batch_size=micro,
        accumulation_steps=8 // micro,
        optimizer=Optimizer.adamw,
        warmup_steps=0,
        checkpoint_every=10**6,
        engine=engine,
        fit_micro_batch=False,
    )
    encoder = Encoder(loaded.processor, max_length_tokens=2048)
    loaded.reset_peak()
    with tempfile.TemporaryDirectory() as directory:
        trainer = Trainer(loaded, encoder, config, directory=Path(directory), seed=0)
        plan = plan_of(examples, config)
        stamps: list[float] = []
        losses: list[float] = []

        def on_step(row: Any) -> None:
            stamps.append(time.perf_counter())
            losses.append(row["loss"])

        trainer.train(plan, {e.id: e for e in examples}, on_step=on_step, on_stage_end=nothing)
    seconds = stamps[-1] - stamps[WARM_UP_STEPS - 1]
    return {
        "engine": engine.value,
        "micro_batch_size": micro,
        "samples_per_second": round(8 * num_steps / seconds, 2),
        "num_steps": num_steps,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "peak_gpu_gb": round((loaded.peak_gpu_bytes() or 0) / 1e9, 1),
    }


def nothing(*_: object) -> None:
    """Stand for what the benchmark does not do at a stage's end."""


def plan_of(examples: Any, config: TrainingConfig) -> Any:
    """Return one shuffled stage over the examples."""
    curriculum = CurriculumConfig(
        name="all", stages=[StageConfig(name="all", filter=Filter.all, share=1.0)]
    )
    return plan_curriculum(curriculum, examples, max_steps=config.max_steps, batch_size=8, seed=0)


def answer_rate(
    loaded: LoadedModel, examples: Any, decoding: Decoding, batch_size: int, new_tokens: int
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return seconds a question, and the answers."""
    encoder = Encoder(loaded.processor, max_length_tokens=2048)
    loaded.reset_peak()
    started = time.perf_counter()
    answers = generate(
        loaded, encoder, examples, max_new_tokens=new_tokens, batch_size=batch_size,
        decoding=decoding,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    return {
        "decoding": answers.decoding,
        "batch_size": batch_size,
        "num_questions": len(examples),
        "seconds_per_question": round(seconds / len(examples), 5),
        "peak_gpu_gb": round((loaded.peak_gpu_bytes() or 0) / 1e9, 1),
    }, answers.texts


def main() -> None:
    """Measure, and write after each part, so that a cut-off visit loses little."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--vqa-rad", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--questions", type=int, default=2248)
    parser.add_argument("--engines", default="fused:8,plain:8,plain:2")
    parser.add_argument("--decodings", default="shared_prefix:128,plain:128:256,plain:1:16")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    result: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": options.name,
        "hardware": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__,
                     "python": platform.python_version()},
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
        "training": [],
        "answering": [],
    }  # fmt: skip

    def write() -> None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")

    path = str(options.vqa_rad)
    train, everything = (
        load_examples(SourceConfig(name="vqa_rad", path=path, split=split), seed=0)
        for split in ("train", "all")
    )
    train = [replace(e, id=f"train/{e.id}") for e in train]
    loaded = build(options.name, options.tokenizer)
    # Plain engines first: an accelerated model stays accelerated, and answers fastest.
    for text in sorted(options.engines.split(","), key=lambda t: not t.startswith("plain")):
        name, micro = text.split(":")
        row = train_rate(loaded, train, Engine[name], int(micro), options.steps)
        result["training"].append(row)
        print(row, flush=True)  # noqa: T201
        write()
    first: tuple[str, ...] = ()
    for text in options.decodings.split(","):
        name, batch, *limit = text.split(":")
        asked = everything[: int(limit[0]) if limit else options.questions]
        row, texts = answer_rate(loaded, asked, Decoding[name], int(batch), 8)
        first = first or texts
        same = [a == b for a, b in zip(first, texts, strict=False)]
        result["answering"].append({**row, "same_as_first": sum(same) / len(same)})
        print(result["answering"][-1], flush=True)  # noqa: T201
        write()


if __name__ == "__main__":
    main()
