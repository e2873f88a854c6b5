r"""The study on the speaking base: one record of all cells, and what its preregistration asks.

    python -m benchmarks.speaking_study record multirun/study --out docs/study/speaking.json.gz
    python -m benchmarks.speaking_study accept docs/study/speaking_acceptance.json.gz
    python -m benchmarks.speaking_study analyse docs/study/speaking.json.gz --out ANALYSIS.json
    python -m benchmarks.speaking_study draw VQA_RAD.json PHANTOMS.json --out PICTURE.png

The record holds, per cell, config choices and per question exact match, F1 and the probability of
yes. The folds (or pools) of an arm, a budget and a seed are joined, so each question stands once in
each row.
"""

import gzip
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scipy import stats

from benchmarks.speaking_record import Row, record
from benchmarks.scores import command_line
from medvqa.evaluation.comparison import arm_mean, compare_arms
from medvqa.evaluation.statistics import holm
from medvqa.tracking.record import read_json, write_json

MARGIN, LEVEL = 0.03, 0.05
PRIMARY = (("open_first", "closed_only", "closed"), ("open_first", "mixed", "open"))
METRIC = {"closed": "exact_match", "open": "f1"}
ACCEPTANCE = (
    ("final", "majority"),
    ("blind", "majority"),  # the trained model without the picture
    ("zero_shot", "majority"),
    ("final", "blind"),
)


class Study:
    """A record, asked by arm, budget and kind of question.

    Attributes:
        rows: (arm, budget) -> phase -> one joined row of cells per seed that has all folds.
    """

    def __init__(self, values: Row, by: str = "max_steps") -> None:
        self._sets = dict(sorted(values["sets"].items()))
        grouped: dict[Any, dict[int, dict[str, Row]]] = defaultdict(lambda: defaultdict(dict))
        for cell in values["cells"]:
            grouped[cell["arm"], cell[by]][cell["seed"]][cell["fold"]] = cell
        self.rows = {
            key: [folds for _, folds in sorted(seeds.items()) if len(folds) == len(self._sets)]
            for key, seeds in grouped.items()
        }

    def about(self, name: str) -> list[Any]:
        """Return one value per question over all folds: `kinds`, `clusters` or `labels`."""
        return [value for about in self._sets.values() for value in about[name]]

    def scores(self, key: Any, kind: str, metric: str, phase: str = "final") -> list[list[float]]:
        """Return (seeds, questions of the kind)."""
        is_kind = [own == kind for own in self.about("kinds")]
        return [
            [
                float(value)
                for value, own in zip(self._joined(folds, phase, metric), is_kind, strict=True)
                if own
            ]
            for folds in self.rows[key]
        ]

    def clusters(self, kind: str) -> list[str]:
        """Return the picture of each question of the kind."""
        pairs = zip(self.about("clusters"), self.about("kinds"), strict=True)
        return [str(cluster) for cluster, own in pairs if own == kind]

    def areas(self, key: Any) -> list[float]:
        """Return each seed's area under the ROC curve of yes against no, the mean over folds."""
        return [
            sum(
                area(self._sets[fold]["labels"], cell["phases"]["final"]["yes"])
                for fold, cell in folds.items()
            )
            / len(folds)
            for folds in self.rows[key]
        ]

    def _joined(self, folds: dict[str, Row], phase: str, metric: str) -> Iterator[Any]:
        for fold in self._sets:
            yield from folds[fold]["phases"][phase][metric]


def area(labels: list[str | None], shares: list[float]) -> float:
    """Return the probability that a question with the answer yes has the higher share of yes."""
    answers = [text for text in labels if text]
    sides = [
        [share for share, text in zip(shares, answers, strict=True) if text == name]
        for name in ("yes", "no")
    ]
    return float(stats.mannwhitneyu(*sides).statistic) / (len(sides[0]) * len(sides[1]))


def accept(path: Path) -> list[Row]:
    """Return the difference to the majority answer by type, per learning rate and kind."""
    study = Study(read_record(path), by="learning_rate")
    return [
        {
            "learning_rate": key[1],
            "questions": kind,
            "phase": phase,
            "minus": reference,
            **difference(
                study.scores(key, kind, "exact_match", phase),
                study.scores(key, kind, "exact_match", reference),
                study.clusters(kind),
                seeds_are_paired=reference == "blind",
            ),
        }
        for key in study.rows
        for phase, reference in ACCEPTANCE
        for kind in METRIC
        if study.rows[key]
    ]


def is_accepted(comparisons: list[Row]) -> bool:
    """Return whether one learning rate beats the majority answer on both kinds of questions."""
    final = [one for one in comparisons if (one["phase"], one["minus"]) == ACCEPTANCE[0]]
    rates = {one["learning_rate"] for one in final}
    beaten = {(one["learning_rate"], one["questions"]) for one in final if one["low"] > 0}
    return any((rate, "closed") in beaten and (rate, "open") in beaten for rate in rates)


def difference(
    a: list[list[float]], b: list[list[float]], clusters: list[str], *, seeds_are_paired: bool
) -> Row:
    """Return both means and a minus b with its interval; rows are seeds."""
    compared = compare_arms(a, b, clusters, seeds_are_paired=seeds_are_paired)
    score = compared.difference
    means = {name: sum(map(sum, x)) / sum(map(len, x)) for name, x in (("a", a), ("b", b))}
    return {
        "mean_a": means["a"],
        "mean_b": means["b"],
        "difference": score.mean,
        "low": score.low,
        "high": score.high,
        "p_value": compared.p_value,
        "num_questions": len(clusters),
        "num_pictures": compared.num_clusters,
        "num_seeds": list(compared.num_seeds),
    }


def reading(one: Row) -> str:
    """Return the preregistered reading of a comparison; `holm_p` only in the primary family."""
    is_equivalent = one["low"] > -MARGIN and one["high"] < MARGIN
    is_different = one.get("holm_p", 1.0) < LEVEL
    words = [
        w for w, holds in (("difference", is_different), ("equivalent", is_equivalent)) if holds
    ]
    return " and ".join(words) or "undecided"


def contrast(study: Study, a: Any, b: Any, kind: str) -> Row:
    """Return a minus b by the preregistered test."""
    scores = [study.scores(key, kind, METRIC[kind]) for key in (a, b)]
    names = {"a": a[0], "b": b[0], "max_steps": a[1], "questions": kind, "metric": METRIC[kind]}
    return names | difference(*scores, study.clusters(kind), seeds_are_paired=False)


def analyse(values: Row, num_seeds: int = 8) -> Row:
    """Return means, areas, the primary family and the secondary comparisons."""
    study = Study(values)
    whole = [key for key, seeds in study.rows.items() if len(seeds) == num_seeds]
    budgets = sorted({budget for _, budget in whole}, reverse=True)
    primary = [
        contrast(study, (a, budget), (b, budget), kind)
        for budget in budgets
        for a, b, kind in PRIMARY
        if (a, budget) in whole and (b, budget) in whole
    ]
    for one, p in zip(primary, holm([one["p_value"] for one in primary]), strict=True):
        one["holm_p"] = p
    secondary = [
        contrast(study, key, ("mixed", key[1]), kind)
        for key in whole
        for kind in METRIC
        if key[0] != "mixed" and ("mixed", key[1]) in whole
    ]
    halves = [
        contrast(study, ("open_first", 2 * steps), ("closed_half", steps), kind)
        for arm, steps in whole
        for kind in METRIC
        if arm == "closed_half" and ("open_first", 2 * steps) in whole
    ]
    groups = {"primary": primary, "secondary": [*secondary, *halves]}
    for one in [*primary, *secondary, *halves]:
        one["reading"] = reading(one)
    return groups | {
        "arms": [_arm(study, key) for key in whole],
        "unfinished": values["unfinished"],
    }


def _arm(study: Study, key: Any) -> Row:
    areas = study.areas(key)
    values: Row = {"arm": key[0], "max_steps": key[1], "auc": sum(areas) / len(areas)}
    values["auc_by_seed"] = areas
    for kind in METRIC:
        for metric in ("exact_match", "f1"):
            scores = study.scores(key, kind, metric)
            mean = arm_mean(scores, study.clusters(kind), bounds=(0, 1)).score
            values[f"{kind}_{metric}"] = [mean.mean, mean.low, mean.high]
    return values


def read_record(path: Path) -> Row:
    """Return a record; one whose name ends in .gz is compressed."""
    data = path.read_bytes()
    values: Row = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    return values


def draw(analyses: list[Path], out: Path) -> None:
    """Draw the primary differences of each analysis with their intervals and the margin."""
    from medvqa.evaluation.figure import FAINT, INK, SERIES, new_figure
    from medvqa.evaluation.score import SHOWN

    figure, axes = new_figure(8, 2.6, ncols=len(PRIMARY), sharey=True)
    named = {"speaking": "VQA-RAD", "phantom": "phantoms"}
    rows = [
        (f"{named[path.stem.split('_')[-2]]}, {one['max_steps']} steps", one)
        for path in analyses
        for one in read_json(path)["primary"]
    ]
    labels = list(dict.fromkeys(label for label, _ in rows))
    for axis, (a, b, kind) in zip(axes[0], PRIMARY, strict=True):
        axis.axvspan(-100 * MARGIN, 100 * MARGIN, color=FAINT, alpha=0.25, lw=0)
        axis.axvline(0, color=INK, lw=0.8)
        for label, one in rows:
            if one["questions"] == kind:
                y = labels.index(label)
                axis.plot([100 * one["low"], 100 * one["high"]], [y, y], color=SERIES[0], lw=2)
                axis.plot(100 * one["difference"], y, "s", color=SERIES[0], ms=6)
        axis.set_title(f"{a} - {b}, {kind} questions", loc="left", fontsize=9)
        axis.set_xlabel(f"{SHOWN[METRIC[kind]]}, points, 95 % interval", fontsize=9)
        axis.grid(axis="x")
    axes[0, 0].set_yticks(range(len(labels)), labels)
    axes[0, 0].set_ylim(len(labels) - 0.5, -0.5)
    figure.savefig(out, dpi=150)


def main() -> None:
    """Record, accept, analyse or draw."""
    parser, commands = command_line(__doc__)
    commands.add_parser("accept").add_argument("record", type=Path)
    drawn = commands.add_parser("draw")
    drawn.add_argument("analyses", type=Path, nargs="+")
    drawn.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.command == "record":
        record(options.directories, options.out)
    elif options.command == "accept":
        comparisons = accept(options.record)
        sys.stdout.writelines(json.dumps(one) + "\n" for one in comparisons)
        sys.stdout.write("accepted\n" if is_accepted(comparisons) else "not accepted\n")
    elif options.command == "draw":
        draw(options.analyses, options.out)
    else:
        write_json(options.out, analyse(read_record(options.record)))


if __name__ == "__main__":
    main()
