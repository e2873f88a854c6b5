r"""The study on the speaking base: one record of all cells, and what its preregistration asks.

    python -m benchmarks.speaking_study record multirun/study --out docs/study/speaking.json.gz
    python -m benchmarks.speaking_study accept docs/study/speaking_acceptance.json.gz
    python -m benchmarks.speaking_study analyse docs/study/speaking.json.gz --out ANALYSIS.json
    python -m benchmarks.speaking_study draw VQA_RAD.json PHANTOMS.json --out PICTURE.png

The record holds, per cell, config choices and per question exact match, F1 and the probability of
yes. The folds (or pools) of an arm, a budget and a seed are joined, so each question stands once in
each row.
"""

import itertools
import json
import sys
from pathlib import Path
from statistics import fmean

from sklearn.metrics import roc_auc_score

from benchmarks.runs import Row
from benchmarks.scores import Scores, command_line, compared
from benchmarks.study_records import read_record, scores_of, write_record
from medvqa.evaluation.comparison import arm_mean
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
Arm = tuple[str, int]  # with its budget


def table_of(values: Row, by: str = "max_steps") -> Scores:
    """Return what the record holds; sets are the folds, or the pools of phantoms."""
    kinds, clusters = ({f: about[name] for f, about in values["sets"].items()}
                       for name in ("kinds", "clusters"))  # fmt: skip
    scores = Scores(kinds, clusters)
    for cell in values["cells"]:
        for phase, own in cell["phases"].items():
            for metric in ("exact_match", "f1"):
                key = (cell["arm"], cell[by], phase, metric)
                scores.add(key, cell["seed"], cell["fold"], own[metric])
    return scores


def accept(values: Row) -> list[Row]:
    """Return the difference to the majority answer by type, per learning rate and phase."""
    scores = table_of(values, by="learning_rate")
    rates = dict.fromkeys((cell["arm"], cell["learning_rate"]) for cell in values["cells"])
    comparisons = []
    for arm, rate in rates:
        if not scores.of(arm, rate).seeds:
            continue
        for (phase, reference), kind in itertools.product(ACCEPTANCE, METRIC):
            one, two = (scores.of(arm, rate, kind, phase=p) for p in (phase, reference))
            about = {"learning_rate": rate, "questions": kind, "phase": phase, "minus": reference}
            comparisons.append({**about, **compared(one, two, paired=reference == "blind")})
    return comparisons


def is_accepted(comparisons: list[Row]) -> bool:
    """Return whether one learning rate beats the majority answer on both kinds of questions."""
    final = [one for one in comparisons if (one["phase"], one["minus"]) == ACCEPTANCE[0]]
    rates = {one["learning_rate"] for one in final}
    beaten = {(one["learning_rate"], one["questions"]) for one in final if one["low"] > 0}
    return any((rate, "closed") in beaten and (rate, "open") in beaten for rate in rates)


def reading(one: Row) -> str:
    """Return the preregistered reading of a comparison; `holm_p` only in the primary family."""
    is_equivalent = one["low"] > -MARGIN and one["high"] < MARGIN
    is_different = one.get("holm_p", 1.0) < LEVEL
    words = [
        w for w, holds in (("difference", is_different), ("equivalent", is_equivalent)) if holds
    ]
    return " and ".join(words) or "undecided"


def contrast(scores: Scores, a: Arm, b: Arm, kind: str) -> Row:
    """Return a minus b by the preregistered test."""
    one, two = (scores.of(*arm, kind, metric=METRIC[kind]) for arm in (a, b))
    names = {"a": a[0], "b": b[0], "max_steps": a[1], "questions": kind, "metric": METRIC[kind]}
    return {**names, **compared(one, two, paired=False)}


def analyse(values: Row, num_seeds: int = 8) -> Row:
    """Return means, areas, the primary family and the secondary comparisons."""
    scores = table_of(values)
    arms = dict.fromkeys((cell["arm"], cell["max_steps"]) for cell in values["cells"])
    whole = [arm for arm in arms if len(scores.of(*arm).seeds) == num_seeds]
    primary = [
        contrast(scores, (a, budget), (b, budget), kind)
        for budget in sorted({budget for _, budget in whole}, reverse=True)
        for a, b, kind in PRIMARY
        if (a, budget) in whole and (b, budget) in whole
    ]
    for one, p in zip(primary, holm([one["p_value"] for one in primary]), strict=True):
        one["holm_p"] = p
    pairs = [(arm, ("mixed", arm[1])) for arm in whole if arm[0] != "mixed"]
    pairs += [
        (("open_first", 2 * steps), (arm, steps)) for arm, steps in whole if arm == "closed_half"
    ]
    secondary = [
        contrast(scores, a, b, kind)
        for a, b in pairs
        if a in whole and b in whole
        for kind in METRIC
    ]
    for one in [*primary, *secondary]:
        one["reading"] = reading(one)
    return {
        "primary": primary,
        "secondary": secondary,
        "arms": [arm_summary(values, scores, arm) for arm in whole],
        "unfinished": values["unfinished"],
    }


def arm_summary(values: Row, scores: Scores, arm: Arm) -> Row:
    """Return an arm's means with intervals and its areas under the ROC curve, means over folds."""
    areas = []
    for seed in scores.of(*arm).seeds:
        cells = [
            cell for cell in values["cells"]
            if (cell["arm"], cell["max_steps"], cell["seed"]) == (*arm, seed)
        ]  # fmt: skip
        areas.append(fmean(
            roc_auc_score(
                [text == "yes" for text in values["sets"][cell["fold"]]["labels"] if text],
                cell["phases"]["final"]["yes"],
            )
            for cell in cells
        ))  # fmt: skip
    summary = {"arm": arm[0], "max_steps": arm[1], "auc": fmean(areas), "auc_by_seed": areas}
    for kind in METRIC:
        for metric in ("exact_match", "f1"):
            own = scores.of(*arm, kind, metric=metric)
            mean = arm_mean(own.scores, own.clusters, bounds=(0, 1)).score
            summary[f"{kind}_{metric}"] = [mean.mean, mean.low, mean.high]
    return summary


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
        values = scores_of(options.directories)
        write_record(values, options.out)
        sys.stdout.write(f"{len(values['cells'])} cells, {values['unfinished']} unfinished\n")
    elif options.command == "accept":
        comparisons = accept(read_record(options.record))
        sys.stdout.writelines(json.dumps(one) + "\n" for one in comparisons)
        sys.stdout.write("accepted\n" if is_accepted(comparisons) else "not accepted\n")
    elif options.command == "draw":
        draw(options.analyses, options.out)
    else:
        write_json(options.out, analyse(read_record(options.record)))


if __name__ == "__main__":
    main()
