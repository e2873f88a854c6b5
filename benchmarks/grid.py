"""Wall time of one grid, curricula x seeds of one model, isolated and warm, per number of GPUs.

    python -m benchmarks.grid OUT.json                                   tiny model, CPU
    python -m benchmarks.grid OUT.json --model DIR --data VQA_RAD --slots [0] [0,1]

Each cell takes 40 steps of an effective batch of 8 and answers VQA-RAD's 451 test questions (64
phantoms on a CPU). DIR holds Qwen3-VL-8B's shapes (`benchmarks/random_models.py`). Every part is
written when it ends.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from benchmarks.runs import BARE, ROOT, Row, Run, add_row, call, parser_of
from medvqa.tracking.record import read_json

CURRICULA = ("mixed", "open_first", "closed_first", "interleaved")


def grid(options: argparse.Namespace, *, is_warm: bool, slots: str | None) -> Row:
    """Run the grid and return its wall time and what each cell took."""
    model = ["data.evaluation.test.limit=64"]
    if options.model is not None:
        model = ["model=qwen3_vl_8b", f"model.path='{options.model.resolve()}'", "data=vqa_rad"]
        model += [f"data.path='{options.data.resolve()}'"]
    command = [
        *(str(ROOT / "train.py"), "-m", *model, *BARE, "evaluation.max_new_tokens=8"),
        *("training.micro_batch_size=8", "training.accumulation_steps=1"),
        f"training.max_steps={options.steps}",
        f"curriculum={','.join(CURRICULA[: options.curricula])}",
        f"seed={','.join(map(str, range(options.seeds)))}",
        f"hydra.launcher.warm={str(is_warm).lower()}",
        *([f"hydra.launcher.slots={slots}"] if slots else []),
    ]
    with tempfile.TemporaryDirectory(prefix="grid-") as place:
        wall_s = call(command, Path(place) / "grid.log")
        cells = [cell(path.parent) for path in sorted(Path(place).rglob("run.json"))]
    return {
        "num_cells": len(cells),
        "grid_s": round(wall_s, 1),
        "median_cell_s": round(statistics.median(row["wall_s"] for row in cells), 2),
        "cells": cells,
    }


def cell(directory: Path) -> Row:
    """Return where one cell spent its time."""
    run = Run(directory, read_json(directory / "status.json")["seconds"])
    steps = [row["seconds"] for row in run.steps]
    return {
        "wall_s": run.wall_s,
        "phases_s": run.record["seconds"],
        "later_step_s": statistics.median(steps[len(steps) // 2 :]),
        "engine": run.record["training"]["engine"],
    }


def main() -> None:
    """Measure each combination and write it when it ends."""
    parser = parser_of(__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--ways", nargs="*", choices=("warm", "isolated"), default=["warm"])
    parser.add_argument("--slots", nargs="*", default=[None])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--curricula", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if (options.model is None) != (options.data is None):
        parser.error("--model and --data belong together")
    for way in options.ways:
        for slots in options.slots:
            part = grid(options, is_warm=way == "warm", slots=slots)
            add_row(options.out, "parts", f"{way} {slots or 'one slot'}", part)


if __name__ == "__main__":
    main()
