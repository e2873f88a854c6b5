"""What a frozen base in 8 or 4 bits costs in quality: loss curves and accuracy, seed by seed.

    python -m benchmarks.precision OUT.json --at-once 5      # a GPU for fp8 and nf4
    python -m benchmarks.precision OUT.json --table           # of what it holds

Each run is the command `train.py` with the embedded model on phantoms, the same seed for each form.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from medvqa.tracking.environment import provenance
from medvqa.tracking.record import read_json, read_lines, write_json

ROOT = Path(__file__).resolve().parents[1]
FORMS = {
    "dtype": [],
    "fp8": ["model.base_precision=fp8"],
    "nf4": ["model.load_in_4bit=true"],
}


def run(form: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train once; return the losses and the accuracy."""
    directory = options.work / f"{form}-{seed}-{time.time_ns()}"
    command = [
        *(sys.executable, str(ROOT / "train.py"), f"seed={seed}", *FORMS[form]),
        *(f"training.max_steps={options.steps}", "training.engine=fused", "tracking=disabled"),
        *("evaluation.zero_shot=false", "evaluation.after_each_stage=false"),
        *("evaluation.bertscore.enabled=false", f"hydra.run.dir='{directory}'"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return {"form": form, "seed": seed, "failed": done.stderr[-500:]}
    losses = [row["loss"] for row in read_lines(directory / "metrics.jsonl")]
    metrics = read_json(directory / "evaluation" / "final" / "test" / "metrics.json")
    accuracy = metrics["summary"]["overall"]["exact_match"]
    return {
        "form": form,
        "seed": seed,
        "exact_match": accuracy["mean"],
        "num_questions": accuracy["num_examples"],
        "losses": losses,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return one line per form: accuracy, its difference to the first form, the last losses."""
    lines = [
        "| form | exact match | difference, paired by seed | loss of the last tenth | seeds |",
        "|---|---|---|---|---|",
    ]
    by_form = {form: {row["seed"]: row for row in rows if row["form"] == form and "losses" in row}
               for form in FORMS}  # fmt: skip
    base = by_form["dtype"]
    for form, runs in by_form.items():
        if not runs:
            continue
        scores = [row["exact_match"] for row in runs.values()]
        pairs = [row["exact_match"] - base[seed]["exact_match"]
                 for seed, row in runs.items() if seed in base]  # fmt: skip
        spread = statistics.stdev(pairs) if len(pairs) > 1 and form != "dtype" else 0.0
        last = [statistics.mean(r["losses"][-max(1, len(r["losses"]) // 10) :])
                for r in runs.values()]  # fmt: skip
        lines.append(
            f"| {form} | {statistics.mean(scores):.3f} | {statistics.mean(pairs):+.3f} "
            f"(s.d. {spread:.3f}) | {statistics.mean(last):.3f} | {len(runs)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run each form with each seed, some at once, and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("/tmp/precision"))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if not options.table:
        options.work.mkdir(parents=True, exist_ok=True)
        cases = [(form, seed, options) for seed in options.seeds for form in options.forms]
        with ThreadPoolExecutor(options.at_once) as pool:
            rows = list(pool.map(lambda case: run(*case), cases))
        write_json(options.out, {**provenance(), "steps": options.steps, "rows": rows})
    print(table(read_json(options.out)["rows"]))  # noqa: T201


if __name__ == "__main__":
    main()
