"""What a frozen base in 8 or 4 bits costs in quality: loss curves and accuracy, seed by seed.

    python -m benchmarks.precision OUT.json --at-once 5      # a GPU for fp8 and nf4
    python -m benchmarks.precision OUT.json --table           # of what it holds

Each run is the command `train.py` with the embedded model on phantoms, the same seed for each form.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.runs import (
    BARE,
    FailedCommandError,
    Row,
    new_directory,
    parser_of,
    provenance,
    train,
)
from medvqa.tracking.record import read_json, write_json

FORMS = {
    "dtype": [],
    "fp8": ["model.base_precision=fp8"],
    "nf4": ["model.load_in_4bit=true"],
}


def run(form: str, seed: int, options: argparse.Namespace) -> Row:
    """Train once; return the losses and the accuracy."""
    about = {"form": form, "seed": seed}
    try:
        done = train(
            new_directory(options.work, f"{form}-{seed}"),
            *(f"seed={seed}", *FORMS[form], *BARE),
            *(f"training.max_steps={options.steps}", "training.engine=fused"),
        )
    except FailedCommandError as error:
        return {**about, "failed": str(error)}
    metrics = read_json(done.directory / "evaluation" / "final" / "test" / "metrics.json")
    accuracy = metrics["summary"]["overall"]["exact_match"]
    return {
        **about,
        "exact_match": accuracy["mean"],
        "num_questions": accuracy["num_examples"],
        "losses": [row["loss"] for row in done.steps],
    }


def table(rows: list[Row]) -> str:
    """Return one line per form: accuracy, its difference to the first form, the last losses."""
    import pandas

    runs = pandas.DataFrame(rows).dropna(subset=["losses"])
    runs["last_loss"] = [sum(x[-max(1, len(x) // 10) :]) / max(1, len(x) // 10)
                         for x in runs["losses"]]  # fmt: skip
    base = runs[runs["form"] == "dtype"].set_index("seed")["exact_match"]
    runs["difference"] = runs["exact_match"] - runs["seed"].map(base)  # paired by seed
    forms = runs.groupby("form", sort=False)
    means = forms[["exact_match", "difference", "last_loss"]].mean()
    means["sd_of_difference"] = forms["difference"].std()
    return str(means.assign(seeds=forms.size()).round(3))


def main() -> None:
    """Run each form with each seed, some at once, and write the rows."""
    parser = parser_of(__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("/tmp/precision"))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if not options.table:
        cases = [(form, seed, options) for seed in options.seeds for form in options.forms]
        with ThreadPoolExecutor(options.at_once) as pool:
            rows = list(pool.map(lambda case: run(*case), cases))
        write_json(options.out, {**provenance(), "steps": options.steps, "rows": rows})
    print(table(read_json(options.out)["rows"]))  # noqa: T201


if __name__ == "__main__":
    main()
