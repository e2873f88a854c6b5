"""Seconds from the start of `train.py` to the end of its first step."""

import argparse
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from benchmarks.engine.workload import TINY
from benchmarks.runs import BARE, FailedCommandError, Row, train


def startup(options: argparse.Namespace) -> Iterator[Row]:
    """Yield seconds of each start; the first may read the weights from the disk, not the cache."""
    for backend in options.backends:
        if backend != "transformers" and find_spec(backend) is None:
            continue
        for attempt in range(1, options.attempts + 1):
            with tempfile.TemporaryDirectory() as place:
                try:
                    row = first_step(options, backend, Path(place) / "run")
                except FailedCommandError as error:
                    row = {"failed": str(error)}
            yield {"backend": backend, "attempt": attempt, **row}


def first_step(options: argparse.Namespace, backend: str, directory: Path) -> Row:
    """Run the command for one step; return when the step's line was written, and the phases."""
    model = [f"model={options.model}", "data=vqa_rad", f"data.path='{options.vqa_rad.resolve()}'"]
    if options.model_path:
        model.append(f"model.path='{options.model_path.resolve()}'")
    if options.model != TINY:  # its file fixes the rest
        model.append(f"model.load_in_4bit={str(options.four_bit).lower()}")
    started = time.time()
    run = train(
        *(directory, *model, *BARE, f"model.backend={backend}", "curriculum=whole_pool"),
        f"training.gradient_checkpointing={str(options.checkpointing).lower()}",
        *("training.max_steps=1", "training.warmup_steps=0", "data.evaluation.test.limit=1"),
        *("evaluation.max_new_tokens=1", "evaluation.blind=false"),
    )
    ended = (directory / "metrics.jsonl").stat().st_mtime - started
    phases, (step,) = run.record["seconds"], run.steps
    counted = phases["data"] + phases["contamination"] + phases["load"] + step["seconds"]
    return {
        "first_step_ended_s": round(ended, 2),
        "whole_command_s": round(run.wall_s, 2),
        "step_s": round(step["seconds"], 2),
        "outside_s": round(ended - counted, 2),  # the interpreter, imports, Hydra
        "phases": {name: round(value, 2) for name, value in phases.items()},
    }
