r"""Keep a study's runs as one small file, and answer what its preregistration asks.

    python benchmarks/study.py record multirun/phantom_study --out docs/study/phantom.json
    python benchmarks/study.py analyse docs/study/phantom.json \
        --baselines docs/study/phantom_baselines.json --out docs/study/phantom_analysis.json

The record holds, for each run, what a reader needs to check a figure: config choices, run id,
commit, times, hash of the order of examples, and for each question of each set whether the answer
was right, as bits, and how many answers were yes or no. No picture and no text of a question is
in it.
"""

import argparse
import hashlib
from pathlib import Path
from typing import Any

from scipy import stats

from medvqa.config.evaluation import Normalizer
from medvqa.evaluation.comparison import ArmMean, arm_mean, compare_arms
from medvqa.evaluation.components import Method
from medvqa.evaluation.normalize import normalize
from medvqa.evaluation.power import minimal_detectable_effect
from medvqa.evaluation.statistics import holm
from medvqa.tracking.record import read_json, read_lines, write_json

REFERENCE = "mixed"
CONTROL = "closed_only"
CLAIMED = "open_first"
KINDS = ("overall", "open", "closed")
MACHINE = ("python", "platform", "num_cpus", "gpus")
LEVEL = 0.05
PREREGISTERED: Method = "satterthwaite"  # the test that docs/study/preregistration.md fixed
# What docs/study/preregistration.md planned with, for one comparison of a family.
PLANNED = {"discordant_fraction": 0.30, "design_effect": 1.3, "seed_sd": 0.03}


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
        "yes_or_no": {
            kind: sum(is_yes_or_no(row["prediction"]) for row in rows if row["answer_type"] == kind)
            for kind in KINDS[1:]
        },
    }


def is_yes_or_no(answer: str) -> bool:
    """Return whether an answer is of the form that only closed-ended questions ask for."""
    return normalize(answer, Normalizer["squad"]) in ("yes", "no")


def read_run(directory: Path, run: dict[str, Any], sets: dict[str, Any]) -> dict[str, Any]:
    """Return what the record keeps of a finished run; questions go into `sets` once."""
    phases: dict[str, dict[str, str]] = {}
    yes_or_no: dict[str, dict[str, dict[str, int]]] = {}
    for path in sorted(directory.glob("evaluation/*/*/predictions.jsonl")):
        phase, name = path.parts[-3], path.parts[-2]
        questions = read_set(path.parent)
        bits, counts = questions.pop("exact_match"), questions.pop("yes_or_no")
        known = sets.setdefault(name, questions)
        if known != questions:
            raise SystemExit(f"{directory}: set {name} has other questions than the first run's")
        phases.setdefault(phase, {})[name] = bits
        yes_or_no.setdefault(phase, {})[name] = counts
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
        "yes_or_no": yes_or_no,
    }


def read_cell_seconds(directory: Path) -> float | None:
    """Return how long a grid's worker held the cell; None for a run that no grid started."""
    status = directory / "status.json"
    return float(read_json(status)["seconds"]) if status.exists() else None


def finished_runs(directories: list[Path]) -> tuple[dict[Path, Any], list[str], dict[str, Any]]:
    """Return the finished runs' run.json, the other runs' names, and the last one's environment."""
    paths = sorted(path for directory in directories for path in directory.rglob("run.json"))
    runs = {path.parent: read_json(path) for path in paths}
    finished = {place: run for place, run in runs.items() if run.get("state") == "finished"}
    environment = list(finished.values())[-1]["environment"] if finished else {}
    return finished, [place.name for place in runs if place not in finished], environment


def record(directories: list[Path], out: Path) -> None:
    """Write the record of all finished runs below the directories."""
    sets: dict[str, Any] = {}
    finished, unfinished, environment = finished_runs(directories)
    runs = [read_run(directory, run, sets) for directory, run in finished.items()]
    if not runs:
        raise SystemExit(f"no finished run in {', '.join(map(str, directories))}")
    for questions in sets.values():  # pictures as numbers: their names say nothing here
        names = sorted(set(questions["clusters"]))
        questions["clusters"] = [names.index(name) for name in questions["clusters"]]
    values = {
        "environment": {name: environment[name] for name in MACHINE},
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
        self.sets = sorted(self.values["sets"], key=lambda name: (name == "shifted", name))

    def runs_of(self, arm: str, budget: int) -> list[dict[str, Any]]:
        """Return the arm's runs, by seed."""
        runs = [run for run in self.runs if (run["arm"], run["max_steps"]) == (arm, budget)]
        return sorted(runs, key=lambda run: int(run["seed"]))

    def scores(
        self, arm: str, budget: int, name: str, kind: str, phase: str = "final"
    ) -> list[list[int]]:
        """Return (seeds, questions) of 0 and 1; `kind` is overall, open or closed."""
        is_of_kind = self.has_kind(name, kind)
        return [
            [bit for bit, is_own in zip(from_hex(bits), is_of_kind, strict=True) if is_own]
            for bits in (run["exact_match"][phase][name] for run in self.runs_of(arm, budget))
        ]

    def share_of_yes_or_no(self, arm: str, budget: int, name: str, kind: str, phase: str) -> float:
        """Return the share of answers, over all seeds, that are yes or no."""
        kinds = KINDS[1:] if kind == "overall" else (kind,)
        counts = [run["yes_or_no"][phase][name] for run in self.runs_of(arm, budget)]
        num = sum(int(count[k]) for count in counts for k in kinds)
        return num / (len(counts) * sum(self.has_kind(name, kind)))

    def has_kind(self, name: str, kind: str) -> list[bool]:
        """Return which questions are of the kind."""
        return [kind == "overall" or t == kind[0] for t in self.values["sets"][name]["types"]]

    def clusters(self, name: str, kind: str) -> list[str]:
        """Return the picture of each question of the kind."""
        pictures = self.values["sets"][name]["clusters"]
        return [str(p) for p, w in zip(pictures, self.has_kind(name, kind), strict=True) if w]

    def paired_seeds(self, a: str, b: str, budget: int) -> list[int]:
        """Return the seeds of both arms, which must be the same ones, each once."""
        seeds = [[int(run["seed"]) for run in self.runs_of(arm, budget)] for arm in (a, b)]
        if seeds[0] != seeds[1] or len(set(seeds[0])) != len(seeds[0]):
            raise SystemExit(f"{budget} steps: {a} has the seeds {seeds[0]}, {b} has {seeds[1]}")
        return seeds[0]

    def contrast(
        self, a: str, b: str, budget: int, name: str, kind: str, phase_of_b: str = "final"
    ) -> dict[str, Any]:
        """Return a minus b with paired seeds; a is always the finished run."""
        seeds = self.paired_seeds(a, b, budget)
        clusters = self.clusters(name, kind)
        scores_a = self.scores(a, budget, name, kind)
        scores_b = self.scores(b, budget, name, kind, phase_of_b)
        comparison = compare_arms(
            scores_a, scores_b, clusters, seeds_are_paired=True, method=PREREGISTERED
        )
        return {
            "a": a,
            "b": b if phase_of_b == "final" else f"{b} {phase_of_b}",
            "max_steps": budget,
            "set": name,
            "questions": kind,
            "num_questions": len(clusters),
            "num_pictures": comparison.num_clusters,
            "seeds": seeds,
            "difference": comparison.difference.mean,
            "low": comparison.difference.low,
            "high": comparison.difference.high,
            "by_seed": [_mean([x]) - _mean([y]) for x, y in zip(scores_a, scores_b, strict=True)],
            "standard_error": comparison.standard_error,
            "degrees_of_freedom": comparison.components[0].degrees_of_freedom,
            "p_value": comparison.p_value,
        }

    def means(self) -> list[dict[str, Any]]:
        """Return every arm's score in every phase that its runs have, but the baselines'."""
        return [
            {"arm": arm, "max_steps": budget, "phase": phase, "set": name, "questions": kind}
            | _described(self, arm, budget, name, kind, phase)
            for budget in self.budgets
            for arm in self.arms
            for phase in sorted(self.runs_of(arm, budget)[0]["exact_match"])
            if phase != "majority"
            for name in self.sets
            for kind in KINDS
        ]

    def baselines(self) -> list[dict[str, Any]]:
        """Return the score of every phase of the only run there is, or stop if there are more."""
        if len(self.runs) != 1:
            raise SystemExit(f"the baselines are one run's; there are {len(self.runs)} here")
        run = self.runs[0]
        return [
            {"phase": phase, "set": name, "questions": kind}
            | _described(self, run["arm"], run["max_steps"], name, kind, phase)
            for phase in sorted(run["exact_match"])
            for name in self.sets
            for kind in KINDS
        ]

    def course(self) -> dict[str, Any]:
        """Return when and with what the runs were made, and what they cost."""
        return {
            "num_runs": len(self.runs),
            "num_unfinished": len(self.values["unfinished"]),
            "num_restarted": sum(run["num_starts"] > 1 for run in self.runs),
            "commits": sorted({run["commit"] for run in self.runs}),
            "any_dirty": any(run["dirty"] for run in self.runs),
            "started": min(run["started"] for run in self.runs),
            "ended": max(run["ended"] for run in self.runs),
            "cell_seconds": {
                str(budget): round(
                    sum(run["cell_seconds"] for run in self.runs if run["max_steps"] == budget)
                )
                for budget in self.budgets
            },
            "environment": self.values["environment"],
            "torch": self.values["packages"]["torch"],
        }


def _described(
    study: Study, arm: str, budget: int, name: str, kind: str, phase: str
) -> dict[str, Any]:
    scores, clusters = study.scores(arm, budget, name, kind, phase), study.clusters(name, kind)
    mean: ArmMean = arm_mean(scores, clusters, bounds=(0, 1), method=PREREGISTERED)
    return {
        "num_questions": len(clusters),
        "num_seeds": mean.num_seeds,
        "exact_match": mean.score.mean,
        "low": mean.score.low,
        "high": mean.score.high,
        "variance_of": mean.variance_of,
        "by_seed": [_mean([row]) for row in scores],
        "yes_or_no": study.share_of_yes_or_no(arm, budget, name, kind, phase),
    }


def _mean(rows: list[list[int]]) -> float:
    return sum(map(sum, rows)) / sum(map(len, rows))


def adjusted(contrasts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add what depends on the family: Holm's p-values, the verdict, and what could be seen.

    Effects that could be seen are those found with power 0.8 at Holm's first step.
    """
    alpha = LEVEL / len(contrasts)
    values = holm([contrast["p_value"] for contrast in contrasts])
    return [
        {
            **c,
            "holm_p": p,
            "verdict": verdict(c, p),
            "planned_detectable": minimal_detectable_effect(
                c["num_questions"], num_seeds=len(c["seeds"]), alpha=alpha, **PLANNED
            ),
            "observed_detectable": observed_detectable(c, alpha),
        }
        for c, p in zip(contrasts, values, strict=True)
    ]


def observed_detectable(contrast: dict[str, Any], alpha: float) -> float:
    """Return (t(1 - alpha/2) + t(0.8)) standard errors, as preregistered."""
    quantiles = (stats.t.ppf(p, contrast["degrees_of_freedom"]) for p in (1 - alpha / 2, 0.8))
    return float(sum(quantiles)) * float(contrast["standard_error"])


def verdict(contrast: dict[str, Any], holm_p: float) -> str:
    """Return the preregistered reading of one comparison."""
    if holm_p >= LEVEL:
        return "no difference shown"
    return f"{contrast['a' if contrast['difference'] > 0 else 'b']} is better"


def families_of(study: Study, primary: str) -> dict[str, list[dict[str, Any]]]:
    """Return the preregistered families: P1 and P2 in one, S1 and S2 a set each, S3 over both."""
    others = [arm for arm in study.arms if arm != REFERENCE]
    pairs = {
        "primary": [
            pair
            for budget in study.budgets
            for pair in (
                (CLAIMED, CONTROL, budget, primary, "closed"),
                (CLAIMED, REFERENCE, budget, primary, "overall"),
            )
        ],
        **{
            f"each arm - {REFERENCE}, {name}": [
                (arm, REFERENCE, budget, name, "overall")
                for budget in study.budgets
                for arm in others
            ]
            for name in study.sets
        },
        f"{CLAIMED} - {CONTROL}, overall": [
            (CLAIMED, CONTROL, budget, name, "overall")
            for name in study.sets
            for budget in study.budgets
        ],
    }
    return {
        name: adjusted([study.contrast(*one) for one in family]) for name, family in pairs.items()
    }


def equal_closed_budget(study: Study, primary: str) -> list[dict[str, Any]]:
    """Return P1 with equally many closed examples; thought of after the results, so without p.

    closed_first's first stage and open_first's second hold the same closed examples for a seed.
    """
    contrasts = [
        study.contrast(CLAIMED, "closed_first", budget, primary, "closed", "after_closed")
        for budget in study.budgets
    ]
    return [{k: v for k, v in one.items() if k != "p_value"} for one in contrasts]


def analyse(path: Path, baselines: Path | None, primary: str, out: Path) -> None:
    """Write means, baselines and the preregistered families."""
    study = Study(path)
    families = families_of(study, primary)
    values = {
        "record": path.name,
        "course": study.course(),
        "means": study.means(),
        "baselines": Study(baselines).baselines() if baselines else [],
        "families": families,
        "post_hoc_equal_closed_budget": equal_closed_budget(study, primary),
    }
    write_json(out, values)
    print(f"{sum(len(family) for family in families.values())} comparisons in {out}")  # noqa: T201


def command_line(description: str | None) -> tuple[argparse.ArgumentParser, Any]:
    """Return a study's command line and its commands `record` and `analyse`."""
    parser = argparse.ArgumentParser(description=description)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, source in (("record", "directories"), ("analyse", "record")):
        command = commands.add_parser(name)
        command.add_argument(source, type=Path, nargs="+" if name == "record" else None)
        command.add_argument("--out", type=Path, required=True)
    return parser, commands


def main() -> None:
    """Record or analyse."""
    parser, commands = command_line(__doc__)
    ask = commands.choices["analyse"]
    ask.add_argument("--baselines", type=Path, help="record of the one run that has them")
    ask.add_argument("--primary", default="test")
    options = parser.parse_args()
    if options.command == "record":
        record(options.directories, options.out)
    else:
        analyse(options.record, options.baselines, options.primary, options.out)


if __name__ == "__main__":
    main()
