"""Seconds from the start of `train.py` to the end of its first step."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks.engine.workload import TINY, Row, Settings
from medvqa.tracking.record import read_json, read_lines

ROOT = Path(__file__).resolve().parents[2]
POLL_S = 0.005
TAIL = 2_000  # characters of a failed process's output that its row keeps


def startup(settings: Settings) -> Iterator[Row]:
    """Yield seconds from `train.py`'s start to the end of its first step.

    At the first attempt the weights may come from the disk, then from the system's cache.
    """
    for backend in _importable(settings.backends):
        for attempt in range(1, settings.attempts + 1):
            with tempfile.TemporaryDirectory() as directory:
                yield {"backend": backend, "attempt": attempt} | first_step(
                    settings, backend, Path(directory) / "run"
                )


def first_step(settings: Settings, backend: str, directory: Path) -> Row:
    """Run the command for one step and return when the step's line appeared, and the phases."""
    log = directory.with_suffix(".log")
    started = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *_overrides(settings, backend, directory)],
            stdout=output,
            stderr=output,
            cwd=ROOT,
        )
        seconds = None
        while process.poll() is None:
            time.sleep(POLL_S)
            if seconds is None and _has_line(directory / "metrics.jsonl"):
                seconds = round(time.perf_counter() - started, 2)
    if process.returncode != 0 or seconds is None:
        return {"failed": log.read_text(encoding="utf-8", errors="replace")[-TAIL:]}
    phases = read_json(directory / "run.json")["seconds"]
    (row,) = read_lines(directory / "metrics.jsonl")
    return {
        "first_step_ended_s": seconds,
        "whole_command_s": round(time.perf_counter() - started, 2),
        "step_s": round(row["seconds"], 2),
        # What no phase counts: the interpreter, imports, Hydra.
        "outside_s": round(seconds - phases["data"] - phases["contamination"] - phases["load"]
                           - row["seconds"], 2),
        "phases": {name: round(value, 2) for name, value in phases.items()},
    }  # fmt: skip


def _overrides(settings: Settings, backend: str, directory: Path) -> list[str]:
    overrides = [f"model={settings.model}", "data=vqa_rad", f"data.path='{settings.vqa_rad}'"]
    if settings.model_path:
        overrides.append(f"model.path='{settings.model_path}'")
    if settings.model != TINY:  # its file fixes the rest
        overrides.append(f"model.load_in_4bit={str(settings.four_bit).lower()}")
    return [
        *overrides,
        f"model.backend={backend}",
        f"training.gradient_checkpointing={str(settings.checkpointing).lower()}",
        "curriculum=whole_pool",
        "training.max_steps=1",
        "training.warmup_steps=0",
        "data.evaluation.test.limit=1",
        "evaluation.max_new_tokens=1",
        "evaluation.after_each_stage=false",
        "evaluation.zero_shot=false",
        "evaluation.blind=false",
        "evaluation.bertscore.enabled=false",
        "tracking=disabled",
        f"hydra.run.dir='{directory}'",
    ]


def _has_line(path: Path) -> bool:
    try:
        return b"\n" in path.read_bytes()
    except FileNotFoundError:
        return False


def _importable(names: Sequence[str]) -> list[str]:
    return [name for name in names if name == "transformers" or find_spec(name)]
