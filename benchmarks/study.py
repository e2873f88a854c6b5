"""Keep a study's runs as one small file, and answer what its preregistration asks.

    python benchmarks/study.py record multirun/phantom_study --out docs/study/phantom.json
    python benchmarks/study.py analyse docs/study/phantom.json --primary test

The record holds, for each run, what a reader needs to check a figure: config choices, run id,
commit, times, hash of the order of examples, and for each question of each set whether the answer was
right, as bits. No picture and no text of a question is in it.
"""

import argparse
import hashlib
import itertools
from pathlib import Path
from typing import Any

from medvqa.comparison import compare_arms
from medvqa.power import estimate_clustering, minimal_detectable_effect
from medvqa.record import read_json, read_lines, write_json
from medvqa.statistics import holm

REFERENCE = "mixed"
CONTROL = "closed_only"
CLAIMED = "open_first"


def to_hex(bits: list[bool]) -> str:
    """Return the bits as hexadecimal digits, the first question first."""
    text = "".join("1" if bit else "0" for bit in bits)
    return f"{int('1' + text, 2):x}"


def from_hex(digits: str) -> list[int]:
    """Return the bits of `to_hex`."""
    return [int(bit) for bit in f"{int(digits, 16):b}"[1:]]


def read_set(directory: Path) -> dict[str, Any]:
    """Return one phase's questions, in the order of their ids, and which were answered right."""
    rows = sorted(read_lines(directory / "predictions.jsonl"), key=lambda row: row["id"])
    return {
        "ids_sha256": hashlib.sha256("\n".join(row["id"] for row in rows).encode()).hexdigest(),
        "types": "".join(row["answer_type"][0] for row in rows),
        "clusters": [row["cluster"] for row in rows],
        "exact_match": to_hex([row["exact_match"] == 1 for row in rows]),
    }


def read_run(directory: Path, sets: dict[str, Any]) -> dict[str, Any]:
    """Return what the record keeps of a finished run; questions go into `sets` once."""
    run = read_json(directory / "run.json")
    phases: dict[str, dict[str, str]] = {}
    for path in sorted(directory.glob("evaluation/*/*/predictions.jsonl")):
        phase, name = path.parts[-3], path.parts[-2]
        found = read_set(path.parent)
        bits = found.pop("exact_match")
        known = sets.setdefault(name, found)
        if known != found:
            raise SystemExit(f"{directory}: set {name} has other questions than the first run's")
        phases.setdefault(phase, {})[name] = bits
    config = run["config"]
    return {
        "directory": directory.name,
        "run_id": run["run_id"],
        "arm": config["curriculum"]["name"],
        "seed": config["seed"],
        "max_steps": config["training"]["max_steps"],
        "batch_size": config["training"]["micro_batch_size"]
        * config["training"]["accumulation_steps"],
        "num_steps": run["plan"]["num_steps"],
        "order_sha256": run["plan"]["order_sha256"],
        "commit": run["git"]["commit"],
        "dirty": run["git"]["dirty"],
        "started": run["started"],
        "ended": run["ended"],
        "num_starts": run["num_starts"],
        "cell_seconds": read_cell_seconds(directory),
        "seconds": run["seconds"],
        "final_loss": run["training"]["final_loss"],
        "exact_match": phases,
    }


def read_cell_seconds(directory: Path) -> float | None:
    """Return how long a grid's worker held the cell; None for a run that no grid started."""
    status = directory / "status.json"
    return float(read_json(status)["seconds"]) if status.exists() else None


def record(directories: list[Path], out: Path) -> None:
    """Write the record of all finished runs below the directories."""
    sets: dict[str, Any] = {}
    runs, unfinished, environment = [], [], {}
    for path in sorted(p for d in directories for p in d.rglob("run.json")):
        run = read_json(path)
        if run.get("state") != "finished":
            unfinished.append(path.parent.name)
            continue
        environment = run["environment"]
        runs.append(read_run(path.parent, sets))
    if not runs:
        raise SystemExit(f"no finished run in {', '.join(map(str, directories))}")
    for found in sets.values():  # pictures as numbers: their names say nothing here
        names = sorted(set(found["clusters"]))
        found["clusters"] = [names.index(name) for name in found["clusters"]]
    values = {
        "environment": {k: environment[k] for k in ("python", "platform", "num_cpus", "gpus")},
        "packages": environment["packages"],
        "unfinished": unfinished,
        "sets": sets,
        "runs": runs,
    }
    write_json(out, values)
    print(f"{len(runs)} runs, {len(unfinished)} unfinished; {out.stat().st_size / 1024:.0f} KiB")  # noqa: T201


class Study:
    """The record, asked by arm, budget, set and question type."""

    def __init__(self, path: Path) -> None:
        self.values = read_json(path)
        self.runs = self.values["runs"]
        self.budgets = sorted({run["max_steps"] for run in self.runs})
        self.arms = sorted({run["arm"] for run in self.runs})

    def scores(
        self, arm: str, budget: int, name: str, kind: str, phase: str = "final"
    ) -> list[list[int]]:
        """Return (seeds, questions) of 0 and 1; `kind` is overall, open or closed."""
        rows = sorted(
            (run["seed"], run["exact_match"][phase][name])
            for run in self.runs
            if (run["arm"], run["max_steps"]) == (arm, budget)
        )
        wanted = self.wanted(name, kind)
        return [
            [bit for bit, is_wanted in zip(from_hex(bits), wanted, strict=True) if is_wanted]
            for _, bits in rows
        ]

    def wanted(self, name: str, kind: str) -> list[bool]:
        """Return which questions are of the kind."""
        return [kind == "overall" or t == kind[0] for t in self.values["sets"][name]["types"]]

    def clusters(self, name: str, kind: str) -> list[str]:
        """Return the picture of each question of the kind."""
        pictures = self.values["sets"][name]["clusters"]
        return [str(p) for p, w in zip(pictures, self.wanted(name, kind), strict=True) if w]

    def contrast(self, a: str, b: str, budget: int, name: str, kind: str) -> dict[str, Any]:
        """Return a minus b with paired seeds."""
        clusters = self.clusters(name, kind)
        scores_a, scores_b = (self.scores(arm, budget, name, kind) for arm in (a, b))
        found = compare_arms(
            scores_a, scores_b, clusters, seeds_are_paired=True, num_samples=2000, seed=0
        )
        differences = [
            [x - y for x, y in zip(*pair, strict=True)]
            for pair in zip(scores_a, scores_b, strict=True)
        ]
        mean = [sum(column) / len(column) for column in zip(*differences, strict=True)]
        discordant = sum(map(abs, itertools.chain(*differences))) / sum(map(len, differences))
        seed_sd = _standard_deviation([sum(d) / len(d) for d in differences])
        return {
            "a": a,
            "b": b,
            "max_steps": budget,
            "set": name,
            "questions": kind,
            "num_questions": len(clusters),
            "num_pictures": found.num_clusters,
            "num_seeds": found.num_seeds[0],
            "difference": found.difference.mean,
            "low": found.difference.low,
            "high": found.difference.high,
            "p_value": found.p_value,
            # Of the difference, so sqrt(2) times less for one arm.
            "seed_sd_of_difference": seed_sd,
            "minimal_detectable_effect": minimal_detectable_effect(
                len(clusters),
                max(discordant, 1e-3),
                num_seeds=found.num_seeds[0],
                seed_sd=seed_sd / 2**0.5 if found.num_seeds[0] > 1 else 0.0,
                design_effect=estimate_clustering(mean, clusters).design_effect,
            ),
        }


def _standard_deviation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return (sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)) ** 0.5


def adjusted(contrasts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add Holm's p-values of the family."""
    values = holm([contrast["p_value"] for contrast in contrasts])
    return [{**c, "holm_p": p} for c, p in zip(contrasts, values, strict=True)]


def analyse(path: Path, primary: str, out: Path) -> None:
    """Write means and the preregistered families, and print them as Markdown."""
    study = Study(path)
    sets = list(study.values["sets"])
    means = [
        {
            "arm": arm,
            "max_steps": budget,
            "set": name,
            "questions": kind,
            "exact_match": _mean(study.scores(arm, budget, name, kind)),
            "by_seed": [_mean([row]) for row in study.scores(arm, budget, name, kind)],
        }
        for name in sets
        for budget in study.budgets
        for arm in study.arms
        for kind in ("overall", "open", "closed")
    ]
    others = [arm for arm in study.arms if arm != REFERENCE]
    families = {
        "primary": adjusted(
            [
                contrast
                for budget in study.budgets
                for contrast in (
                    study.contrast(CLAIMED, CONTROL, budget, primary, "closed"),
                    study.contrast(CLAIMED, REFERENCE, budget, primary, "overall"),
                )
            ]
        ),
        **{
            f"each arm - {REFERENCE}, overall, {name}": adjusted(
                [
                    study.contrast(arm, REFERENCE, budget, name, "overall")
                    for budget in study.budgets
                    for arm in others
                ]
            )
            for name in sets
        },
        f"{CLAIMED} - {CONTROL}, overall": adjusted(
            [
                study.contrast(CLAIMED, CONTROL, budget, name, "overall")
                for name in sets
                for budget in study.budgets
            ]
        ),
    }
    write_json(out, {"record": path.name, "means": means, "families": families})
    print(markdown(study, means, families, primary))  # noqa: T201


def _mean(rows: list[list[int]]) -> float:
    return sum(map(sum, rows)) / sum(map(len, rows))


def markdown(study: Study, means: Any, families: Any, primary: str) -> str:
    """Return the tables that a page quotes."""
    lines = []
    for name in study.values["sets"]:
        lines += [f"\n{name}: exact match, overall (open / closed), mean over seeds\n"]
        lines += ["| arm | " + " | ".join(f"{b} steps" for b in study.budgets) + " |"]
        lines += ["|---" * (len(study.budgets) + 1) + "|"]
        for arm in study.arms:
            cells = []
            for budget in study.budgets:
                found = {
                    m["questions"]: m["exact_match"]
                    for m in means
                    if (m["arm"], m["max_steps"], m["set"]) == (arm, budget, name)
                }
                cells.append(
                    f"{found['overall']:.3f} ({found['open']:.3f} / {found['closed']:.3f})"
                )
            lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    for family, contrasts in families.items():
        lines += [f"\n{family}\n", "| a - b | steps | questions | difference | p | Holm p | MDE |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for c in contrasts:
            mde = c["minimal_detectable_effect"]
            lines.append(
                f"| {c['a']} - {c['b']} | {c['max_steps']} | {c['set']}, {c['questions']}, "
                f"n={c['num_questions']} | {c['difference']:+.3f} [{c['low']:+.3f}, "
                f"{c['high']:+.3f}] | {c['p_value']:.3g} | {c['holm_p']:.3g} | "
                f"{'-' if mde is None else f'{mde:.3f}'} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Record or analyse."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    keep = commands.add_parser("record")
    keep.add_argument("directories", type=Path, nargs="+")
    keep.add_argument("--out", type=Path, required=True)
    ask = commands.add_parser("analyse")
    ask.add_argument("record", type=Path)
    ask.add_argument("--primary", default="test")
    ask.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.command == "record":
        record(options.directories, options.out)
    else:
        out = options.out or options.record.with_name(f"{options.record.stem}_results.json")
        analyse(options.record, options.primary, out)


if __name__ == "__main__":
    main()
