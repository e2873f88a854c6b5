"""What the benchmarks share: commands as a user gives them, and a record that grows by rows."""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvqa.tracking import environment
from medvqa.tracking.record import read_json, read_lines, write_json

ROOT = Path(__file__).resolve().parents[1]
TAIL = 1_500  # characters of a failed command's output that its error keeps
# Overrides of runs that are measured: nothing but their steps and the final answers.
BARE = (
    *("evaluation.zero_shot=false", "evaluation.after_each_stage=false", "tracking=disabled"),
    "evaluation.bertscore.enabled=false",
)
Row = dict[str, Any]


class FailedCommandError(RuntimeError):
    """A command that failed or took too long, with the end of its output."""


@dataclass(frozen=True)
class Run:
    """A finished run, its wall seconds, and what its files say."""

    directory: Path
    wall_s: float
    started: float = 0.0  # seconds since the epoch

    @property
    def record(self) -> Row:
        """The run's run.json."""
        return read_json(self.directory / "run.json")

    @property
    def steps(self) -> list[Row]:
        """The run's metrics.jsonl, one row per step."""
        return read_lines(self.directory / "metrics.jsonl")

    @property
    def first_step_s(self) -> float:
        """Seconds from the command's start until its only step was logged."""
        return (self.directory / "metrics.jsonl").stat().st_mtime - self.started

    def predictions(self, phase: str) -> list[Row]:
        """Return the rows of an evaluation of the test set."""
        return read_lines(self.directory / "evaluation" / phase / "test" / "predictions.jsonl")

    def rate(self, warm_up: int, batch_size: int) -> Row:
        """Return rates over the steps after the warm-up, peak memory and engine."""
        record = self.record
        peak = record["peak_gpu_bytes"]
        return {
            **rate(self.steps, warm_up, batch_size),
            "peak_gpu_gb": peak and round(peak / 1e9, 1),
            "engine": record["training"]["engine"],
        }


def rate(steps: Sequence[Row], warm_up: int, batch_size: int) -> Row:
    """Return samples per second and tokens per sample of the steps after the warm-up."""
    timed_steps = steps[warm_up:]
    seconds = sum(row["seconds"] for row in timed_steps)
    num_steps, num_samples = len(timed_steps), batch_size * len(timed_steps)
    num_tokens = sum(row["num_tokens"] for row in timed_steps)
    return {
        "samples_per_second": round(num_samples / seconds, 2),
        "ms_per_step": round(1000 * seconds / num_steps, 1),
        "tokens_per_sample": round(num_tokens / num_samples, 1),
        "num_steps": num_steps,
    }


def train(directory: Path, *overrides: str, limit_s: float | None = None) -> Run:
    """Run `train.py` with the overrides into the directory; the log lies beside it."""
    command = [str(ROOT / "train.py"), *overrides, f"hydra.run.dir='{directory}'"]
    started = time.time()
    wall_s = call(command, directory.with_suffix(".log"), limit_s=limit_s)
    return Run(directory, wall_s, started)


def call(arguments: Sequence[str], log: Path, *, limit_s: float | None = None) -> float:
    """Run Python with the arguments in the log's directory; return wall seconds.

    Raises:
        FailedCommandError: If the exit code is not 0 or the time is over.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # Unset, the variable would stop at the script's own directory.
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    started = time.monotonic()
    with log.open("wb") as output:
        try:
            code: int | str = subprocess.run(
                [sys.executable, *arguments], stdout=output, stderr=output, cwd=log.parent,
                env=environment, timeout=limit_s, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            code = f"none after {limit_s} s"
    if code != 0:
        text = log.read_text(encoding="utf-8", errors="replace")[-TAIL:]
        raise FailedCommandError(f"exit code {code}\n{text}")
    return time.monotonic() - started


def timed(action: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Return wall and CPU seconds of one call, and its result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = action()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall_s": round(wall, 3), "cpu_s": round(cpu, 3)}, result


def new_directory(work: Path, name: str) -> Path:
    """Return a directory that no earlier run has."""
    return work.resolve() / f"{name}-{time.time_ns()}"


def provenance() -> Row:
    """Return when, how, on what and with which code a record was measured."""
    values = environment.provenance()
    # A lent machine holds the tree, but not the history that belongs to it.
    commit = os.environ.get("COMMIT")
    return {**values, **({"git": {"commit": commit, "dirty": None}} if commit else {})}


def add_row(out: Path, group: str, name: str, row: Row) -> None:
    """Write a measured row into the record and print it, so that a cut-off visit loses little."""
    values = {**read_json(out), **provenance()}
    values.setdefault(group, {})[name] = row
    write_json(out, values)
    short = {k: v for k, v in row.items() if not isinstance(v, list)}
    print(name, short, flush=True)  # noqa: T201


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that shows the description's lines as they are."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
