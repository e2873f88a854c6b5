"""Wall time of one grid, curricula x seeds of one model, isolated and warm, per number of GPUs.

    python benchmarks/grid.py OUT.json                                   tiny model, CPU
    python benchmarks/grid.py OUT.json --model DIR --data VQA_RAD --slots [0] [0,1]

Each cell takes 40 steps of an effective batch of 8 and answers VQA-RAD's 451 test questions (64
phantoms on a CPU). DIR holds Qwen3-VL-8B's shapes (`benchmarks/random_models.py`). Every part is
written when it ends.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from medvqa.tracking.environment import provenance
from medvqa.tracking.record import read_json, read_lines, write_json

ROOT = Path(__file__).resolve().parents[1]
CURRICULA = ("mixed", "open_first", "closed_first", "interleaved")
COMMON = (
    *("evaluation.zero_shot=false", "evaluation.after_each_stage=false"),
    *("evaluation.max_new_tokens=8", "evaluation.bertscore.enabled=false", "tracking=disabled"),
)


def overrides(options: argparse.Namespace) -> list[str]:
    """Return what every cell has in common."""
    batch = ["training.micro_batch_size=8", "training.accumulation_steps=1"]
    steps = f"training.max_steps={options.steps}"
    if options.model is None:
        return ["data.evaluation.test.limit=64", steps, *batch, *COMMON]
    places = [f"model.path='{options.model.resolve()}'", f"data.path='{options.data.resolve()}'"]
    return ["model=qwen3_vl_8b", "data=vqa_rad", *places, steps, *batch, *COMMON]


def grid(options: argparse.Namespace, *, warm: bool, slots: str | None) -> dict[str, Any]:
    """Run the grid and return its wall time and what each cell took."""
    curricula = ",".join(CURRICULA[: options.curricula])
    seeds = ",".join(map(str, range(options.seeds)))
    with tempfile.TemporaryDirectory(prefix="grid-") as place:
        command = [
            *(sys.executable, str(ROOT / "train.py"), "-m", *overrides(options)),
            *(f"curriculum={curricula}", f"seed={seeds}"),
            f"hydra.launcher.warm={str(warm).lower()}",
            *([f"hydra.launcher.slots={slots}"] if slots else []),
        ]
        started = time.monotonic()
        answer = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
        wall_s = time.monotonic() - started
        if answer.returncode != 0:
            raise SystemExit(answer.stdout[-2000:] + answer.stderr[-2000:])
        cells = [cell(path.parent) for path in sorted(Path(place).rglob("run.json"))]
    seconds = [row["wall_s"] for row in cells]
    return {
        "num_cells": len(cells),
        "grid_s": round(wall_s, 1),
        "median_cell_s": round(statistics.median(seconds), 2),
        "cells": cells,
    }


def cell(directory: Path) -> dict[str, Any]:
    """Return where one cell spent its time."""
    run = read_json(directory / "run.json")
    steps = [row["seconds"] for row in read_lines(directory / "metrics.jsonl")]
    return {
        "wall_s": read_json(directory / "status.json")["seconds"],
        "phases_s": run["seconds"],
        "later_step_s": statistics.median(steps[len(steps) // 2 :]),
        "engine": run["training"]["engine"],
    }


def main() -> None:
    """Measure each combination and write it when it ends."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    values = {"parts": {}, **read_json(options.out), **provenance()}
    for way in options.ways:
        for slots in options.slots:
            part = grid(options, warm=way == "warm", slots=slots)
            values["parts"][f"{way} {slots or 'one slot'}"] = part
            write_json(options.out, values)
            print(way, slots, part["grid_s"], "s", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
