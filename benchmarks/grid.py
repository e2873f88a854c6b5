"""Wall time of one grid, 4 curricula x 3 seeds of one model: warm, isolated, and the published way.

    nice python benchmarks/grid.py benchmarks/results/grid_cpu.json
    python benchmarks/grid.py OUT.json --gpu --model-path DIR --data-path VQA_RAD [--cells warm=12]

Each part is written as soon as it is measured. A part that runs fewer than twelve cells is scaled,
and its entry says from how many and how: warm as launch + first cell + 11 x the mean of the later
ones, isolated as launch + 12 x the mean. The published way (Unsloth, 2 x 4, one question at a
time) is always one run, multiplied by twelve; --published-questions and --published-steps time its
answering on fewer questions and its training on fewer steps, and scale them to all: steps by the
median of the later half, questions by the second answering (the first one is the base's, on as
many questions, and takes what only a first one takes); the rest of the run is as it is.

`--gpu` takes Qwen3-VL-8B's shapes with random weights (benchmarks/random_models.py), 40 steps of
an effective batch of 8, and the 451 questions of VQA-RAD's test set.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from medvqa.tracking.record import (
    environment,
    git_state,
    read_json,
    read_lines,
    write_json,
)

ROOT = Path(__file__).resolve().parents[1]
CURRICULA = ("mixed", "open_first", "closed_first", "interleaved")
NUM_SEEDS = 3
NUM_CELLS = len(CURRICULA) * NUM_SEEDS
NUM_QUESTIONS = 451  # of VQA-RAD's test set
COMMON = (
    "training.warmup_steps=5",
    "training.micro_batch_size=2",
    "training.accumulation_steps=4",
    "evaluation.zero_shot=false",
    "evaluation.after_each_stage=false",
    "evaluation.max_new_tokens=8",
    "evaluation.bertscore.enabled=false",
    "tracking=disabled",
)


class Measurement:
    """What all parts share: where they run, and the overrides of every cell."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.is_gpu: bool = options.gpu
        self.num_steps: int = options.steps
        self.num_published_questions: int = options.published_questions
        self.num_published_steps: int = options.published_steps or options.steps
        self.published_backend: str = options.published_backend
        self.timeout_s: float = options.timeout
        common = [f"training.max_steps={options.steps}", *COMMON]
        if self.is_gpu:
            self.base = [
                *("model=qwen3_vl_8b", f"model.path={options.model_path.resolve()}"),
                *("data=vqa_rad", f"data.path={options.data_path.resolve()}", *common),
            ]
            self.ours = ["model.backend=transformers"]
        else:
            self.base = [f"data.evaluation.test.limit={options.questions}", *common]
            # The same step of eight; on a GPU training.fit_micro_batch does that by itself.
            self.ours = ["training.micro_batch_size=8", "training.accumulation_steps=1"]

    def run(self, *arguments: str) -> tuple[float, float, list[dict[str, Any]]]:
        """Run a command in a directory of its own; return wall and CPU seconds, and the runs.

        Raises:
            SystemExit: If it fails; the end of its output is shown.
        """
        with tempfile.TemporaryDirectory(prefix="grid-") as place:
            before, started = _cpu_seconds(), time.monotonic()
            try:
                answer = subprocess.run(
                    [sys.executable, str(ROOT / "train.py"), *arguments],
                    cwd=place,
                    env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    check=False,
                    timeout=self.timeout_s,
                )
            except subprocess.TimeoutExpired as error:
                seen = (error.stdout or b"").decode(errors="replace")[-3000:]
                raise SystemExit(f"not ended after {self.timeout_s:.0f} s\n{seen}") from None
            wall, cpu = time.monotonic() - started, _cpu_seconds() - before
            if answer.returncode != 0:
                raise SystemExit(f"{' '.join(arguments)}\n{answer.stdout[-3000:]}")
            runs = [_cell(path.parent) for path in Path(place).rglob("run.json")]
            return wall, cpu, sorted(runs, key=lambda run: run["started"])

    def grid(self, num_cells: int, *extra: str) -> tuple[float, float, list[dict[str, Any]]]:
        """Run the first cells of the grid, curricula outside, seeds inside."""
        num_seeds = min(NUM_SEEDS, num_cells)
        curricula = CURRICULA[: -(-num_cells // num_seeds)]
        if len(curricula) * num_seeds != num_cells:
            raise SystemExit(f"cells must be 1, 2, or 3, 6, 9, 12, not {num_cells}")
        axes = [f"curriculum={','.join(curricula)}", f"seed={','.join(map(str, range(num_seeds)))}"]
        return self.run("-m", *self.base, *self.ours, *axes, *extra)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _cell(directory: Path) -> dict[str, Any]:
    run = read_json(directory / "run.json")
    steps = [row["seconds"] for row in read_lines(directory / "metrics.jsonl")]
    return {
        "started": run["started"],
        "wall_s": read_json(directory / "status.json").get("seconds"),
        "phases_s": run["seconds"],
        "num_steps": len(steps),
        "evaluation_s": run["evaluation_seconds"],
        "later_step_s": statistics.median(steps[len(steps) // 2 :]),
        "engine": run["training"]["engine"],
        "micro_batch_size": run["training"]["micro_batch_size"],
        "exact_match": run["headline"],
    }


def warm(measurement: Measurement, num_cells: int) -> dict[str, Any]:
    """Measure one process that loads once."""
    wall, cpu, cells = measurement.grid(num_cells, "hydra.launcher.warm=true")
    seconds = [cell["wall_s"] for cell in cells]
    launch = wall - sum(seconds)
    later = statistics.mean(seconds[1:]) if len(seconds) > 1 else seconds[0]
    whole = wall if num_cells == NUM_CELLS else launch + seconds[0] + (NUM_CELLS - 1) * later
    return {"num_measured": num_cells, "wall_s": wall, "cpu_s": cpu, "grid_s": whole,
            "first_cell_s": seconds[0], "later_cell_s": later, "cells": cells}  # fmt: skip


def isolated(measurement: Measurement, num_cells: int) -> dict[str, Any]:
    """Measure a process a cell."""
    wall, cpu, cells = measurement.grid(num_cells)
    seconds = [cell["wall_s"] for cell in cells]
    launch = wall - sum(seconds)
    whole = wall if num_cells == NUM_CELLS else launch + NUM_CELLS * statistics.mean(seconds)
    return {"num_measured": num_cells, "wall_s": wall, "cpu_s": cpu, "grid_s": whole,
            "cell_s": statistics.mean(seconds), "cells": cells}  # fmt: skip


def published(measurement: Measurement, num_cells: int) -> dict[str, Any]:
    """Measure one run of Unsloth 2 x 4, each question alone; on a CPU with plain transformers."""
    way = [
        "training.engine=plain",
        "training.fit_micro_batch=false",
        "evaluation.batch_size=1",
        "evaluation.decoding=plain",
    ]
    asked, steps = NUM_QUESTIONS, measurement.num_steps
    if measurement.is_gpu:
        asked, steps = measurement.num_published_questions, measurement.num_published_steps
        way.append(f"training.max_steps={steps}")
        way += [f"model.backend={measurement.published_backend}"]
        way += ["training.gradient_checkpointing=true"]
        if asked < NUM_QUESTIONS:
            way += [f"data.evaluation.test.limit={asked}", "evaluation.zero_shot=true"]
    wall, cpu, cells = measurement.run(*measurement.base, *way, "hydra.run.dir=run", "seed=0")
    one = wall
    if measurement.is_gpu:
        question_s = cells[0]["evaluation_s"]["final"] / asked
        asked_so_far = asked * len(cells[0]["evaluation_s"])
        one += question_s * (NUM_QUESTIONS - asked_so_far)
        one += cells[0]["later_step_s"] * (measurement.num_steps - steps)
    return {"num_measured": 1, "num_questions": asked, "num_steps": steps, "wall_s": wall,
            "cpu_s": cpu, "run_s": one, "grid_s": NUM_CELLS * one, "cells": cells}  # fmt: skip


PARTS: dict[str, Callable[[Measurement, int], dict[str, Any]]] = {
    "warm": warm,
    "isolated": isolated,
    "published": published,
}


def main(arguments: Sequence[str]) -> None:
    """Measure the parts one after another; each is on the disk before the next begins."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--model-path", type=Path)
    parser.add_argument("--data-path", type=Path)
    parser.add_argument("--parts", default="warm,isolated,published", help="in this order")
    parser.add_argument("--cells", nargs="*", default=[], help="for example warm=3 isolated=1")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--questions", type=int, default=64, help="phantoms asked of tiny")
    parser.add_argument("--published-questions", type=int, default=NUM_QUESTIONS)
    parser.add_argument("--published-steps", type=int, help="as many as --steps unless given")
    parser.add_argument("--published-backend", default="unsloth", help="another for a rehearsal")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds a part may take")
    options = parser.parse_args(arguments)
    if options.gpu and not (options.model_path and options.data_path):
        parser.error("--gpu needs --model-path and --data-path")
    num_cells = {name: int(number) for name, _, number in (c.partition("=") for c in options.cells)}
    measurement = Measurement(options)
    result = read_json(options.out) or {"parts": {}}
    result |= {"git": git_state(ROOT), "environment": environment()}
    for name in options.parts.split(","):
        part = {"command": sys.argv, **PARTS[name](measurement, num_cells.get(name, NUM_CELLS))}
        # What a machine that others use measures more fairly than its clock does.
        grid_cpu_s = part["cpu_s"] * NUM_CELLS / part["num_measured"]
        is_scaled = part["num_measured"] < NUM_CELLS
        result["parts"][name] = {**part, "is_scaled": is_scaled, "grid_cpu_s": grid_cpu_s}
        result["warm_is_faster_than"] = _ratios(result["parts"], "grid_s")
        result["warm_is_cheaper_than"] = _ratios(result["parts"], "grid_cpu_s")
        write_json(options.out, result)
        sys.stdout.write(f"{name}: twelve cells in {part['grid_s']:.1f} s\n")
    for name, ratio in result["warm_is_faster_than"].items():
        cpu = result["warm_is_cheaper_than"][name]
        sys.stdout.write(f"warm is {ratio:.2f} times as fast as {name}, CPU time {cpu:.2f}\n")


def _ratios(parts: dict[str, Any], what: str) -> dict[str, float]:
    if "warm" not in parts:
        return {}
    ours = parts["warm"][what]
    return {name: part[what] / ours for name, part in parts.items() if name != "warm"}


if __name__ == "__main__":
    main(sys.argv[1:])
