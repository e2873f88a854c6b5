"""One run on several GPUs against one GPU: samples/s, losses and answers.

    python -m benchmarks.several_gpus OUT.json --model DIR --data VQA_RAD --gpus 1 2 4
    python -m benchmarks.several_gpus OUT.json --gpus 1 2               tiny model, CPU processes

DIR holds what `benchmarks/random_models.py qwen3_vl_8b` has written. Every figure comes from the
command `train.py`; each part is written when it ends.
"""

import argparse
import os
from pathlib import Path

from benchmarks.runs import BARE, Row, Run, add_row, new_directory, parser_of, train


def run(options: argparse.Namespace, num_gpus: int, *extra: str) -> Run:
    """Run the command on so many GPUs."""
    model = ["experiment=smoke", "model.device=cpu"]
    if options.model is not None:
        model = ["model=qwen3_vl_8b", f"model.path='{options.model.resolve()}'", "data=vqa_rad"]
        model += [f"data.path='{options.data.resolve()}'"]
    return train(
        new_directory(options.work, str(num_gpus)),
        *(*model, *BARE, "curriculum=whole_pool", f"training.gpus={num_gpus}"),
        *("evaluation.max_new_tokens=8", "training.accumulation_steps=1", *extra),
    )


def training(options: argparse.Namespace, num_gpus: int, batch_size: int) -> Row:
    """Return the rate of the steps after the warm-up, and every loss."""
    num_steps = options.warm_up + options.steps
    done = run(
        *(options, num_gpus, f"training.micro_batch_size={batch_size}"),
        *(f"training.max_steps={num_steps}", "data.evaluation.test.limit=1"),
    )
    return {
        **done.rate(options.warm_up, batch_size),
        "peak_gpu_bytes": done.record["peak_gpu_bytes"],
        "order_sha256": done.record["training"]["consumed_sha256"],
        "losses": [row["loss"] for row in done.steps],
    }


def answering(options: argparse.Namespace, num_gpus: int) -> Row:
    """Return the seconds that the untrained model needs for the test set, and its answers."""
    done = run(options, num_gpus, "training.max_steps=1", "evaluation.zero_shot=true")
    return {
        "seconds": done.record["evaluation_seconds"]["zero_shot"],
        "answers": [row["prediction"] for row in done.predictions("zero_shot")],
    }


def main() -> None:
    """Measure each part on each number of GPUs."""
    parser = parser_of(__doc__)
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
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")  # NVLink multicast stays off
    for num_gpus in options.gpus:
        for batch_size in options.batches:
            name = f"batch {batch_size}, {num_gpus} GPUs"
            add_row(options.out, "training", name, training(options, num_gpus, batch_size))
        if options.answers:
            name = f"{num_gpus} GPUs"
            add_row(options.out, "answering", name, answering(options, num_gpus))


if __name__ == "__main__":
    main()
