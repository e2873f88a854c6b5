"""A training run that is killed at random moments, and continued by the same command each time.

    python -m tests.kills --kills 100

The reference run is a command that nobody disturbs. The others are forked from a process that has
imported the libraries, so that every SIGKILL hits the run and none the imports. A run that ends is
compared with the reference: order, losses, adapter, answers and scores must be equal byte for
byte. The next one then begins in a new directory. The exit code is 1 if anything differs.
"""

import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

from benchmarks.runs import Row, Run, parser_of, provenance, train
from medvqa.tracking.record import read_lines, write_json

OVERRIDES = (
    *("model=tiny", "tracking.mode=disabled", "curriculum=open_first", "data.limit=40"),
    *("data.evaluation.test.limit=4", "training.max_steps=16", "training.checkpoint_every=2"),
    *("training.micro_batch_size=1", "training.accumulation_steps=1"),
    *("evaluation.bertscore.enabled=false", "evaluation.max_new_tokens=3"),
)
IMPORTED = ("torch", "transformers", "peft", "matplotlib.pyplot", "imagehash", "scipy.stats",
            "rich.table", "medvqa.cli", "medvqa.run")  # fmt: skip
PATIENCE_S = 600.0


def command(directory: Path) -> None:
    """Be the command `train.py`; its output goes to a log beside the run."""
    with directory.with_suffix(".log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.argv = ["train.py", f"hydra.run.dir={directory}", *OVERRIDES]
    from medvqa.cli import main

    main()


def ends_within(directory: Path, seconds: float) -> bool:
    """Start or continue the run; kill what has not ended in time."""
    process = get_context("fork").Process(target=command, args=(directory,))
    process.start()
    process.join(seconds)
    has_ended = process.exitcode is not None
    if not has_ended:
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    return has_ended


def result(directory: Path) -> Row:
    """Return what a run computed, without times; nothing of a run that has not finished."""
    if not (directory / "results.json").is_file():
        return {}
    run = Run(directory, 0.0)
    adapter = directory / "adapter" / "adapter_model.safetensors"
    answers = sorted(directory.glob("evaluation/*/*/predictions.jsonl"))
    timed = ("seconds", "time", "per_second", "rate_s")
    return {
        "order": read_lines(directory / "order.jsonl"),
        "steps": [
            {name: value for name, value in row.items() if not any(t in name for t in timed)}
            for row in run.steps
        ],
        "adapter": hashlib.sha256(adapter.read_bytes()).hexdigest(),
        "answers": {str(path.relative_to(directory)): path.read_text() for path in answers},
        "scores": run.record["results"],
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


def torture(place: Path, num_kills: int, rng: random.Random) -> Row:
    """Kill and continue runs until so many kills have been made; compare every run that ends."""
    train(place / "reference", *OVERRIDES)
    expected = result(place / "reference")
    for name in IMPORTED:
        import_module(name)
    started = time.monotonic()
    ends_within(place / "undisturbed", PATIENCE_S)
    duration_s = time.monotonic() - started
    phases: Counter[str] = Counter()
    compared, faults = 0, []
    while phases.total() < num_kills or compared == 0:
        directory = place / f"run-{compared}"
        has_ended = False
        while not has_ended:
            is_last = phases.total() >= num_kills
            has_ended = ends_within(
                directory, PATIENCE_S if is_last else rng.uniform(0, duration_s)
            )
            if not has_ended:
                phases[phase(directory)] += 1
        ended = result(directory)
        faults += [f"{directory.name}: {name} differs" for name in expected
                   if ended.get(name) != expected[name]]  # fmt: skip
        compared += 1
    return {
        "kills": dict(phases),
        "runs_compared": compared,
        "seconds_undisturbed": round(duration_s, 1),
        "faults": faults,
    }


def main() -> int:
    """Run it and write the figures."""
    parser = parser_of(__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as place:
        figures = torture(Path(place), options.kills, random.Random(options.seed))
    if options.out is not None:
        write_json(options.out, {**provenance(), **figures})
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    return 1 if figures["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
