"""A training run that is killed at random moments, and continued by the same command each time.

    python -m benchmarks.kills --kills 100

The reference run is a command that nobody disturbs. The others are forked from a process that has
imported the libraries, so that every SIGKILL hits the run and none the imports. A run that ends is
compared with the reference: order, losses, adapter, answers and scores must be equal byte for
byte. The next one then begins in a new directory. The exit code is 1 if anything differs.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

from medvqa.tracking.record import read_json, read_lines, write_json

ROOT = Path(__file__).resolve().parents[1]
OVERRIDES = (
    *("model=tiny", "tracking.mode=disabled", "curriculum=open_first", "data.limit=40"),
    *("data.evaluation.test.limit=4", "training.max_steps=16", "training.checkpoint_every=2"),
    *("training.micro_batch_size=1", "training.accumulation_steps=1"),
    *("evaluation.bertscore.enabled=false", "evaluation.max_new_tokens=3"),
)
IMPORTED = ("torch", "transformers", "peft", "matplotlib.pyplot", "imagehash", "scipy.stats",
            "rich.table", "medvqa.cli", "medvqa.run")  # fmt: skip
PATIENCE_S = 600.0


def begin(directory: Path) -> int:
    """Start the run in a process of its own; return its id."""
    process = os.fork()
    if process:
        return process
    with (directory.parent / f"{directory.name}.log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.argv = ["train.py", f"hydra.run.dir={directory}", *OVERRIDES]
    try:
        from medvqa.cli import main

        main()
    finally:
        os._exit(int(not (directory / "results.json").is_file()))


def ends_within(process: int, seconds: float) -> int | None:
    """Return the exit code of a process that ends in time; None if it goes on."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        process_id, status = os.waitpid(process, os.WNOHANG)
        if process_id:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def result(directory: Path) -> dict[str, Any]:
    """Return what a run computed, without times."""
    import hashlib

    adapter = directory / "adapter" / "adapter_model.safetensors"
    answers = sorted(directory.glob("evaluation/*/*/predictions.jsonl"))
    timed = ("seconds", "time", "per_second", "rate_s")
    steps = [
        {name: value for name, value in row.items() if not any(word in name for word in timed)}
        for row in read_lines(directory / "metrics.jsonl")
    ]
    return {
        "order": read_lines(directory / "order.jsonl"),
        "steps": steps,
        "adapter": hashlib.sha256(adapter.read_bytes()).hexdigest(),
        "answers": {str(path.relative_to(directory)): path.read_text() for path in answers},
        "scores": read_json(directory / "run.json")["results"],
    }


def phase(directory: Path) -> str:
    """Return what the run was doing, by its files."""
    if not (directory / "run.json").is_file():
        return "before the record"
    if (directory / "adapter").is_dir():
        return "final evaluation"
    if not read_lines(directory / "metrics.jsonl"):
        return "data, model, zero-shot"
    return "training and stage evaluation"


def torture(place: Path, num_kills: int, rng: random.Random) -> dict[str, Any]:
    """Kill and continue runs until so many kills have been made; compare every run that ends."""
    started = time.monotonic()
    command = [sys.executable, "train.py", f"hydra.run.dir={place / 'reference'}", *OVERRIDES]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    expected = result(place / "reference")
    for name in IMPORTED:
        import_module(name)
    duration_s = time.monotonic()
    ends_within(begin(place / "undisturbed"), PATIENCE_S)
    duration_s = time.monotonic() - duration_s
    phases: Counter[str] = Counter()
    compared, faults = 0, []
    while sum(phases.values()) < num_kills or compared == 0:
        directory = place / f"run-{compared}"
        code = None
        while code is None:
            process = begin(directory)
            has_kills_left = sum(phases.values()) < num_kills
            delay_s = rng.uniform(0, duration_s) if has_kills_left else PATIENCE_S
            code = ends_within(process, delay_s)
            if code is None:
                phases[phase(directory)] += 1
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
        ended = result(directory) if code == 0 else {}
        faults += [f"{directory.name}: {name} differs" for name in expected
                   if ended.get(name) != expected[name]]  # fmt: skip
        compared += 1
    return {
        "kills": dict(phases),
        "runs_compared": compared,
        "seconds_undisturbed": round(duration_s, 1),
        "seconds": round(time.monotonic() - started),
        "faults": faults,
    }


def main() -> int:
    """Run it and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as place:
        figures = torture(Path(place), options.kills, random.Random(options.seed))
    if options.out is not None:
        write_json(options.out, {"command": "python -m benchmarks.kills", **figures})
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    return 1 if figures["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
