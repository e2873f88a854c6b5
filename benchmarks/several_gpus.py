"""One run on several GPUs against one GPU: samples/s, losses and answers.

    python benchmarks/several_gpus.py OUT.json --model DIR --data VQA_RAD --gpus 1 2 4
    python benchmarks/several_gpus.py OUT.json --gpus 1 2               tiny model, CPU processes

DIR holds what `benchmarks/random_models.py qwen3_vl_8b` has written. Every figure comes from the
command `train.py`; each part is written when it ends. Grids are measured by `benchmarks/grid.py`.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from medvqa.tracking.environment import provenance
from medvqa.tracking.record import read_json, read_lines, write_json

ROOT = Path(__file__).resolve().parents[1]


def run(options: argparse.Namespace, num_gpus: int, *extra: str) -> Path:
    """Run the command on so many GPUs and return the run's directory."""
    directory = options.work / f"{num_gpus}-{time.time_ns()}"
    common = [
        *(f"training.gpus={num_gpus}", "tracking=disabled", f"hydra.run.dir='{directory}'"),
        *("evaluation.bertscore.enabled=false", "evaluation.after_each_stage=false"),
        *("evaluation.max_new_tokens=8", "training.accumulation_steps=1"),
    ]
    if options.model is None:
        model = ["experiment=smoke", "model.device=cpu"]
    else:
        model = ["model=qwen3_vl_8b", f"model.path='{options.model.resolve()}'", "data=vqa_rad"]
        model += [f"data.path='{options.data.resolve()}'"]
    options.work.mkdir(parents=True, exist_ok=True)
    with directory.with_suffix(".log").open("wb") as log:
        command = [sys.executable, str(ROOT / "train.py"), *model, *common, *extra]
        code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    if code != 0:
        raise SystemExit(directory.with_suffix(".log").read_text(errors="replace")[-2000:])
    return directory


def training(options: argparse.Namespace, num_gpus: int, batch_size: int) -> dict[str, Any]:
    """Return the rate of the steps after the warm-up, and every loss."""
    directory = run(
        options,
        num_gpus,
        f"training.micro_batch_size={batch_size}",
        f"training.max_steps={options.warm_up + options.steps}",
        "evaluation.zero_shot=false",
        "data.evaluation.test.limit=1",
        "curriculum=whole_pool",
    )
    rows, record = read_lines(directory / "metrics.jsonl"), read_json(directory / "run.json")
    seconds = [row["seconds"] for row in rows[options.warm_up :]]
    return {
        "samples_per_second": round(batch_size * len(seconds) / sum(seconds), 2),
        "ms_per_step": round(1000 * sum(seconds) / len(seconds), 1),
        "peak_gpu_bytes": record["peak_gpu_bytes"],
        "engine": record["training"]["engine"],
        "order_sha256": record["training"]["consumed_sha256"],
        "losses": [row["loss"] for row in rows],
    }


def answering(options: argparse.Namespace, num_gpus: int) -> dict[str, Any]:
    """Return the seconds that the untrained model needs for the test set, and its answers."""
    extra = ["curriculum=whole_pool", "training.max_steps=1", "evaluation.zero_shot=true"]
    directory = run(options, num_gpus, *extra)
    path = directory / "evaluation" / "zero_shot" / "test" / "predictions.jsonl"
    return {
        "seconds": read_json(directory / "run.json")["evaluation_seconds"]["zero_shot"],
        "answers": [row["prediction"] for row in read_lines(path)],
    }


def main() -> None:
    """Measure each part on each number of GPUs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, nargs="*", default=[8, 64])
    parser.add_argument("--answers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--warm-up", type=int, default=8)
    parser.add_argument("--work", type=Path, default=Path("/tmp/several-gpus"))
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")  # NVLink multicast stays off
    values = {"training": {}, "answering": {}, **read_json(options.out), **provenance()}
    for num_gpus in options.gpus:
        for batch_size in options.batches:
            row = training(options, num_gpus, batch_size)
            values["training"][f"batch {batch_size}, {num_gpus} GPUs"] = row
            write_json(options.out, values)
            print(num_gpus, batch_size, row["samples_per_second"], flush=True)  # noqa: T201
        if options.answers:
            values["answering"][f"{num_gpus} GPUs"] = answering(options, num_gpus)
            write_json(options.out, values)


if __name__ == "__main__":
    main()
