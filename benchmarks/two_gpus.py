"""Two GPUs against one: samples/s, loss curves, sharded evaluation, a grid; JSON out.

    python benchmarks/two_gpus.py RESULTS --model DIRECTORY --data VQA_RAD    two GPUs of a host
    python benchmarks/two_gpus.py RESULTS --tiny                              the same on a CPU

DIRECTORY holds what `benchmarks/random_models.py qwen3_vl_8b` has written. Everything is measured
on the command line's own runs; `--parts` chooses some of them, and what earlier calls have found
stays in RESULTS/two_gpus.json.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvqa.tracking import record

ROOT = Path(__file__).resolve().parents[1]
WARM_UP_STEPS = 3  # kernels are chosen and memory is found
POLL_S = 0.005


@dataclass(frozen=True)
class Settings:
    """What the runs have in common.

    Attributes:
        slots: `hydra.launcher.slots` for one GPU and for two.
    """

    results: Path
    overrides: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    num_steps: int
    num_grid_steps: int
    slots: tuple[str, str]


def run(settings: Settings, name: str, *overrides: str) -> dict[str, Any]:
    """Make one run; return its directory, wall time, and when each step's line appeared."""
    directory = settings.results / "runs" / name
    arguments = [*settings.overrides, *overrides, f"hydra.run.dir='{directory.resolve()}'"]
    started = time.monotonic()
    seen: list[float] = []
    with (settings.results / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *arguments], stdout=log, stderr=log
        )
        while process.poll() is None:
            time.sleep(POLL_S)
            new = _num_lines(directory / "metrics.jsonl") - len(seen)
            seen += [time.monotonic() - started] * new
    if process.returncode != 0:
        raise SystemExit(f"{name} left with exit code {process.returncode}; see {log.name}")
    return {"directory": directory, "wall_s": time.monotonic() - started, "seen": seen}


def _num_lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def steps(settings: Settings) -> dict[str, Any]:
    """Train with one GPU and two at each effective batch."""
    return {f"batch_{size}": _steps(settings, size) for size in settings.batch_sizes}


def _steps(settings: Settings, batch_size: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    curves = []
    for num_gpus in (1, 2):
        made = run(
            settings,
            f"steps-{batch_size}-{num_gpus}",
            f"training.gpus={num_gpus}",
            f"training.micro_batch_size={batch_size}",
            "training.accumulation_steps=1",
            f"training.max_steps={settings.num_steps}",
            "~data.evaluation.test",
        )
        seen, values = made["seen"], record.read_json(made["directory"] / "run.json")
        seconds = (seen[-1] - seen[WARM_UP_STEPS - 1]) / (len(seen) - WARM_UP_STEPS)
        rows = record.read_lines(made["directory"] / "metrics.jsonl")
        curves.append([row["loss"] for row in rows])
        found[f"gpus_{num_gpus}"] = {
            "samples_per_s": batch_size / seconds,
            "step_s": seconds,
            "wall_s": made["wall_s"],
            "peak_gpu_bytes": values["peak_gpu_bytes"],
            "micro_batch_size": values["training"]["micro_batch_size"],
            "engine": values["training"]["engine"],
            "order_sha256": values["training"]["consumed_sha256"],
            "losses": curves[-1],
        }
    one, two = found["gpus_1"], found["gpus_2"]
    return found | {
        "times_faster": two["samples_per_s"] / one["samples_per_s"],
        "same_order": one["order_sha256"] == two["order_sha256"],
        "largest_relative_difference_of_losses": max(
            abs(a - b) / abs(a) for a, b in zip(*curves, strict=True)
        ),
    }


def evaluation(settings: Settings) -> dict[str, Any]:
    """Answer the same questions before training, where both have the same weights."""
    answers, found = [], {}
    for num_gpus in (1, 2):
        made = run(
            settings,
            f"evaluation-{num_gpus}",
            f"training.gpus={num_gpus}",
            "training.max_steps=2",
            "training.warmup_steps=1",
            "evaluation.zero_shot=true",
            "tracking.mode=offline",
        )
        directory = made["directory"]
        (path,) = directory.glob("evaluation/zero_shot/*/predictions.jsonl")
        answers.append([row["prediction"] for row in record.read_lines(path)])
        found[f"gpus_{num_gpus}"] = {
            "evaluate_s": record.read_json(directory / "run.json")["seconds"]["evaluate"],
            "num_wandb_logs": len(list(directory.glob("wandb/offline-run-*"))),
            "num_run_records": len(list(directory.rglob("run.json"))),
        }
    return found | {
        "num_questions": len(answers[0]),
        "num_different_answers": sum(a != b for a, b in zip(*answers, strict=True)),
        "times_faster": found["gpus_1"]["evaluate_s"] / found["gpus_2"]["evaluate_s"],
    }


def grid(settings: Settings) -> dict[str, Any]:
    """Make a grid of four cells on one GPU and on two, isolated and warm."""
    found: dict[str, Any] = {}
    for warm in ("false", "true"):
        name = "warm" if warm == "true" else "isolated"
        seconds = [_grid_s(settings, name, warm, slots) for slots in settings.slots]
        found[name] = {
            "one_gpu_s": seconds[0],
            "two_gpus_s": seconds[1],
            "times_faster": seconds[0] / seconds[1],
        }
    return found


def _grid_s(settings: Settings, name: str, warm: str, slots: str) -> float:
    directory = settings.results / "grids" / f"{name}-{slots.strip('[]').replace(',', '')}"
    arguments = [
        *("-m", *settings.overrides, "seed=1,2,3,4", "evaluation.zero_shot=false"),
        f"training.max_steps={settings.num_grid_steps}",
        *(f"hydra.launcher.slots={slots}", f"hydra.launcher.warm={warm}"),
        f"hydra.sweep.dir='{directory.resolve()}'",
    ]
    started = time.monotonic()
    with (settings.results / f"grid-{directory.name}.log").open("wb") as log:
        subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *arguments],
            stdout=log, stderr=log, check=True,
        )  # fmt: skip
    return time.monotonic() - started


def unsloth(settings: Settings) -> dict[str, Any]:
    """Train some steps with Unsloth's backend on two GPUs, and on one."""
    found = {}
    for num_gpus in (1, 2):
        made = run(
            settings,
            f"unsloth-{num_gpus}",
            f"training.gpus={num_gpus}",
            "model.backend=unsloth",
            f"training.max_steps={settings.num_steps}",
            "~data.evaluation.test",
        )
        rows = record.read_lines(made["directory"] / "metrics.jsonl")
        found[f"gpus_{num_gpus}"] = {"losses": [row["loss"] for row in rows]}
    return found


PARTS: dict[str, Callable[[Settings], dict[str, Any]]] = {
    "steps": steps,
    "evaluation": evaluation,
    "grid": grid,
    "unsloth": unsloth,
}


def real(options: argparse.Namespace) -> Settings:
    """Return the settings for two GPUs: 8B shapes, VQA-RAD's pictures."""
    return Settings(
        results=options.results,
        overrides=(
            *("model=qwen3_vl_8b", f"model.path='{options.model.resolve()}'"),
            *("data=vqa_rad", f"data.path='{options.data.resolve()}'"),
            *("model.backend=transformers", "training.warmup_steps=2", "tracking=disabled"),
            *("evaluation.bertscore.enabled=false", "evaluation.after_each_stage=false"),
            *("evaluation.zero_shot=false", "evaluation.max_new_tokens=8"),
        ),
        batch_sizes=(8, 64),
        num_steps=20,
        num_grid_steps=40,
        slots=("[0]", "[0,1]"),
    )


def tiny(options: argparse.Namespace) -> Settings:
    """Return the settings that show on a processor that all of this works."""
    return Settings(
        results=options.results,
        overrides=(
            *("experiment=smoke", "model.device=cpu", "evaluation.bertscore.enabled=false"),
            "evaluation.zero_shot=false",
        ),
        batch_sizes=(8, 64),
        num_steps=6,
        num_grid_steps=6,
        slots=("1", "2"),
    )


def chosen(parts: Sequence[str], *, is_tiny: bool) -> list[str]:
    """Return the parts to run; Unsloth needs a GPU."""
    return [part for part in parts if not (is_tiny and part == "unsloth")]


def main() -> None:
    """Run the parts one after another and keep each result at once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--model", type=Path, help="random weights of Qwen3-VL-8B's shapes")
    parser.add_argument("--data", type=Path, help="VQA-RAD as its authors publish it")
    parser.add_argument("--tiny", action="store_true", help="the embedded model on the CPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    if not options.tiny and not (options.model and options.data):
        parser.error("give --model and --data, or --tiny")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    )
    options.results.mkdir(parents=True, exist_ok=True)
    settings = tiny(options) if options.tiny else real(options)
    path = options.results / "two_gpus.json"
    for part in chosen(options.parts, is_tiny=options.tiny):
        found = PARTS[part](settings)
        machine = {"environment": record.environment(), "git": record.git_state(ROOT / "medvqa")}
        record.write_json(path, record.read_json(path) | machine | {part: found})
        sys.stdout.write(f"{part}: {json.dumps(found, indent=1)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
