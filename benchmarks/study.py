r"""Keep a study's runs as one small file, and answer what its preregistration asks.

    python -m benchmarks.study record multirun/phantom_study --out docs/study/phantom.json
    python -m benchmarks.study analyse docs/study/phantom.json \
        --baselines docs/study/phantom_baselines.json --out docs/study/phantom_analysis.json

For each run, the record holds config choices, run id, commit, times, and the hash of the order of
examples. One bit per question of each set says whether the answer was right. The record also
counts the answers yes and no. It holds no picture and no text of a question.
"""

import hashlib
from pathlib import Path
from statistics import fmean

from scipy import stats

from benchmarks.runs import Row
from benchmarks.scores import MACHINE, Scores, command_line, compared, finished_runs
from medvqa.config.evaluation import Normalizer
from medvqa.evaluation.comparison import arm_mean
from medvqa.evaluation.components import Method
from medvqa.evaluation.normalize import normalize
from medvqa.evaluation.power import minimal_detectable_effect
from medvqa.evaluation.statistics import holm
from medvqa.tracking.record import read_json, read_lines, write_json

REFERENCE = "mixed"
CONTROL = "closed_only"
CLAIMED = "open_first"
KINDS = {"o": "open", "c": "closed"}  # by the letter that a record holds per question
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


def read_set(directory: Path) -> Row:
    """Return one phase's questions, in the order of their ids, and which were answered right."""
    rows = sorted(read_lines(directory / "predictions.jsonl"), key=lambda row: row["id"])
    return {
        "ids_sha256": hashlib.sha256("\n".join(row["id"] for row in rows).encode()).hexdigest(),
        "types": "".join(row["answer_type"][0] for row in rows),
        "clusters": [row["cluster"] for row in rows],
        "exact_match": to_hex([row["exact_match"] == 1 for row in rows]),
        "yes_or_no": {
            kind: sum(is_yes_or_no(row["prediction"]) for row in rows if row["answer_type"] == kind)
            for kind in KINDS.values()
        },
    }


def is_yes_or_no(answer: str) -> bool:
    """Return whether an answer is of the form that only closed-ended questions ask for."""
    return normalize(answer, Normalizer["squad"]) in ("yes", "no")


def read_run(directory: Path, run: Row, sets: Row) -> Row:
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
    config, batch = run["config"], run["config"]["training"]
    return {
        "directory": directory.name,
        "run_id": run["run_id"],
        "arm": config["curriculum"]["name"],
        "seed": config["seed"],
        "max_steps": batch["max_steps"],
        "batch_size": batch["micro_batch_size"] * batch["accumulation_steps"],
        "num_steps": run["plan"]["num_steps"],
        "order_sha256": run["plan"]["order_sha256"],
        "commit": run["git"]["commit"],
        "dirty": run["git"]["dirty"],
        "started": run["started"],
        "ended": run["ended"],
        "num_starts": run["num_starts"],
        # How long a grid's worker held the cell; None for a run that no grid started.
        "cell_seconds": read_json(directory / "status.json").get("seconds"),
        "seconds": run["seconds"],
        "final_loss": run["training"]["final_loss"],
        "exact_match": phases,
        "yes_or_no": yes_or_no,
    }


def record(directories: list[Path], out: Path) -> None:
    """Write the record of all finished runs below the directories."""
    sets: Row = {}
    finished, unfinished, environment = finished_runs(directories)
    runs = [read_run(directory, run, sets) for directory, run in finished.items()]
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
    print(f"{len(runs)} runs, {len(unfinished)} unfinished")  # noqa: T201


class Study:
    """The record, asked by arm, budget, set and type of question (overall, open or closed)."""

    def __init__(self, path: Path) -> None:
        self.values = read_json(path)
        self.runs = sorted(self.values["runs"], key=lambda run: int(run["seed"]))
        self.budgets = sorted({run["max_steps"] for run in self.runs})
        self.arms = sorted({run["arm"] for run in self.runs})
        sets = self.values["sets"]
        self.sets = sorted(sets, key=lambda name: (name == "shifted", name))
        self.scores = Scores(
            {name: [KINDS[letter] for letter in about["types"]] for name, about in sets.items()},
            {name: about["clusters"] for name, about in sets.items()},
        )
        for run in self.runs:
            for phase, by_set in run["exact_match"].items():
                key = (run["arm"], run["max_steps"], phase, "exact_match")
                for name, digits in by_set.items():
                    self.scores.add(key, int(run["seed"]), name, from_hex(digits))

    def runs_of(self, arm: str, budget: int) -> list[Row]:
        """Return the arm's runs, by seed."""
        return [run for run in self.runs if (run["arm"], run["max_steps"]) == (arm, budget)]

    def contrast(
        self, a: str, b: str, budget: int, name: str, kind: str, phase_of_b: str = "final"
    ) -> Row:
        """Return a minus b with paired seeds; a is always the finished run."""
        one = self.scores.of(a, budget, kind, sets=[name])
        two = self.scores.of(b, budget, kind, sets=[name], phase=phase_of_b)
        if one.seeds != two.seeds:
            raise SystemExit(f"{budget} steps: {a} has the seeds {one.seeds}, {b} has {two.seeds}")
        return {
            "a": a,
            "b": b if phase_of_b == "final" else f"{b} {phase_of_b}",
            "max_steps": budget,
            "set": name,
            "questions": kind,
            "seeds": one.seeds,
            **compared(one, two, paired=True, method=PREREGISTERED),
            "by_seed": [fmean(x) - fmean(y) for x, y in zip(one.scores, two.scores, strict=True)],
        }

    def means(self, without: str = "") -> list[Row]:
        """Return every arm's score in every phase but one, and how many answers are yes or no."""
        return [
            self._mean(arm, budget, phase, name, kind)
            for budget in self.budgets
            for arm in self.arms
            for phase in sorted(self.runs_of(arm, budget)[0]["exact_match"])
            if phase != without
            for name in self.sets
            for kind in ("overall", *KINDS.values())
        ]

    def _mean(self, arm: str, budget: int, phase: str, name: str, kind: str) -> Row:
        own = self.scores.of(arm, budget, kind, phase=phase, sets=[name])
        mean = arm_mean(own.scores, own.clusters, bounds=(0, 1), method=PREREGISTERED)
        kinds = KINDS.values() if kind == "overall" else (kind,)
        counts = [run["yes_or_no"][phase][name] for run in self.runs_of(arm, budget)]
        num_answers = sum(map(len, own.scores))
        return {
            **{"arm": arm, "max_steps": budget, "phase": phase, "set": name, "questions": kind},
            "num_questions": len(own.clusters),
            "num_seeds": mean.num_seeds,
            "exact_match": mean.score.mean,
            "low": mean.score.low,
            "high": mean.score.high,
            "by_seed": list(map(fmean, own.scores)),
            "yes_or_no": sum(count[k] for count in counts for k in kinds) / num_answers,
        }


def adjusted(contrasts: list[Row]) -> list[Row]:
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


def observed_detectable(contrast: Row, alpha: float) -> float:
    """Return (t(1 - alpha/2) + t(0.8)) standard errors, as preregistered."""
    quantiles = (stats.t.ppf(p, contrast["degrees_of_freedom"]) for p in (1 - alpha / 2, 0.8))
    return float(sum(quantiles)) * float(contrast["standard_error"])


def verdict(contrast: Row, holm_p: float) -> str:
    """Return the preregistered reading of one comparison."""
    if holm_p >= LEVEL:
        return "no difference shown"
    return f"{contrast['a' if contrast['difference'] > 0 else 'b']} is better"


def families_of(study: Study, primary: str) -> dict[str, list[Row]]:
    """Return the preregistered families: P1 and P2 in one, S1 and S2 a set each, S3 over both."""
    budgets, others = study.budgets, [arm for arm in study.arms if arm != REFERENCE]
    against_control = [(CLAIMED, CONTROL, budget, primary, "closed") for budget in budgets]
    against_mixed = [(CLAIMED, REFERENCE, budget, primary, "overall") for budget in budgets]
    pairs = {
        "primary": [p for both in zip(against_control, against_mixed, strict=True) for p in both],
        **{
            f"each arm - {REFERENCE}, {name}": [
                (arm, REFERENCE, budget, name, "overall") for budget in budgets for arm in others
            ]
            for name in study.sets
        },
        f"{CLAIMED} - {CONTROL}, overall": [
            (CLAIMED, CONTROL, budget, name, "overall") for name in study.sets for budget in budgets
        ],
    }
    return {
        name: adjusted([study.contrast(*one) for one in family]) for name, family in pairs.items()
    }


def equal_closed_budget(study: Study, primary: str) -> list[Row]:
    """Return P1 with equally many closed examples; thought of after the results, so without p.

    closed_first's first stage and open_first's second hold the same closed examples for a seed.
    """
    contrasts = [
        study.contrast(CLAIMED, "closed_first", budget, primary, "closed", "after_closed")
        for budget in study.budgets
    ]
    return [{k: v for k, v in one.items() if k != "p_value"} for one in contrasts]


def analyse(path: Path, baselines: Path, primary: str, out: Path) -> None:
    """Write means, baselines and the preregistered families."""
    study = Study(path)
    (_,) = (baseline := Study(baselines)).runs  # the baselines are one run's
    values = {
        "record": path.name,
        "means": study.means(without="majority"),
        "baselines": baseline.means(),
        "families": families_of(study, primary),
        "post_hoc_equal_closed_budget": equal_closed_budget(study, primary),
    }
    write_json(out, values)


def main() -> None:
    """Record or analyse."""
    parser, commands = command_line(__doc__)
    ask = commands.choices["analyse"]
    ask.add_argument("--baselines", type=Path, required=True, help="record of the run with them")
    ask.add_argument("--primary", default="test")
    options = parser.parse_args()
    if options.command == "record":
        record(options.directories, options.out)
    else:
        analyse(options.record, options.baselines, options.primary, options.out)


if __name__ == "__main__":
    main()
