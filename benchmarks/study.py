r"""Keep a study's runs as one small file, and answer what its preregistration asks.

    python -m benchmarks.study record multirun/phantom_study --out docs/study/phantom.json
    python -m benchmarks.study analyse docs/study/phantom.json \
        --baselines docs/study/phantom_baselines.json --out docs/study/phantom_analysis.json

For each run, the record holds config choices, run id, commit, times, and the hash of the order of
examples. One bit per question of each set says whether the answer was right. The record also
counts the answers yes and no. It holds no picture and no text of a question.
"""

from pathlib import Path
from statistics import fmean

from scipy import stats

from benchmarks.runs import Row
from benchmarks.scores import Scores, command_line, compared
from benchmarks.study_records import KINDS, bits_of, from_hex, read_record
from medvqa.evaluation.comparison import arm_mean
from medvqa.evaluation.components import Method
from medvqa.evaluation.power import minimal_detectable_effect
from medvqa.evaluation.statistics import holm
from medvqa.tracking.record import write_json

REFERENCE = "mixed"
CONTROL = "closed_only"
CLAIMED = "open_first"
LEVEL = 0.05
PREREGISTERED: Method = "satterthwaite"  # the test that docs/study/preregistration.md fixed
# What docs/study/preregistration.md planned with, for one comparison of a family.
PLANNED = {"discordant_fraction": 0.30, "design_effect": 1.3, "seed_sd": 0.03}


class Study:
    """The record, asked by arm, budget, set and type of question (overall, open or closed)."""

    def __init__(self, path: Path) -> None:
        self.values = read_record(path)
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
        self, a: str, b: str, budget: int, name: str, kind: str, *, phase_of_b: str = "final"
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
        study.contrast(
            *(CLAIMED, "closed_first", budget, primary, "closed"), phase_of_b="after_closed"
        )
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
        values = bits_of(options.directories)
        write_json(options.out, values)
        print(f"{len(values['runs'])} runs, {len(values['unfinished'])} unfinished")  # noqa: T201
    else:
        analyse(options.record, options.baselines, options.primary, options.out)


if __name__ == "__main__":
    main()
