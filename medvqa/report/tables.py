"""Study -> the tables that people read: results, stages, differences, verdicts, missing runs."""

from collections.abc import Sequence
from itertools import product

from medvqa.evaluation.score import SHOWN
from medvqa.report.pairs import Comparison
from medvqa.report.published import NOT_STATED, SOURCE, differences, row_of
from medvqa.report.rows import unequal_arms
from medvqa.report.study import Result, Study
from medvqa.report.table import MINUS, Table, interval, probability
from medvqa.report.verdicts import few_seeds, final_words

MARK = "\N{DAGGER}"
PUBLISHED = ("exact_match", "f1", "bertscore_f1")
PHASE_NAMES = {"majority": "majority answer", "zero_shot": "zero-shot base",
               "blind": "{}, blind", "final": "{}"}  # fmt: skip


def tables(study: Study) -> list[Table]:
    """Return the tables of each set, and that of the runs which are not in them."""
    makers = (results_table, stages_table, differences_table)
    of_sets = [make(study, name) for name in study.set_names for make in makers]
    last = (published_table, missing_runs_table, verdicts_table)
    every = [*of_sets, *(make(study) for make in last)]
    return [table for table in every if table.rows]


def results_table(study: Study, set_name: str) -> Table:
    """Return arms by metrics over all questions, baselines beside them."""
    unequal = unequal_arms(study)
    cells = {
        (r.arm.name, r.phase, r.metric): r
        for r in study.results
        if r.set_name == set_name and r.group == "overall"
    }
    metrics = [m for m in SHOWN if any(key[2] == m for key in cells)]
    remarks = study.remarks(set_name)
    rows: dict[tuple[str, ...], None] = {}  # a baseline that the arms of a model share is one row
    for arm, phase in product(study.arms, ("majority", "zero_shot", "blind", "final")):
        results = [cells.get((arm.name, phase, metric)) for metric in metrics]
        first = next((r for r in results if r), None)
        if first is None:
            continue
        training = f"{arm.ordering}{MARK if arm.name in unequal else ''}"
        row = (
            arm.row,
            PHASE_NAMES[phase].format(training),
            str(first.mean.num_seeds),
            *(interval(r.mean.score if r else None) for r in results),
            remarks[arm.name] if phase == "final" else "",
        )
        rows[row] = None
    for arm in study.arms:
        if not arm.runs:
            rows[(arm.row, arm.ordering, "0", *("-" for _ in metrics), remarks[arm.name])] = None
    return Table(
        f"{set_name}: all questions, mean [95 % interval]",
        ("model", "training", "seeds", *(SHOWN[m] for m in metrics), "remark"),
        tuple(rows),
        (*_sizes(study, set_name), *(f"{MARK} {name} {why}" for name, why in unequal.items())),
    )


def stages_table(study: Study, set_name: str, metric: str = "exact_match") -> Table:
    """Return what each stage leaves of open and of closed questions: forgetting is a fall."""
    unequal = unequal_arms(study)
    by_phase: dict[tuple[str, str, str], dict[str, Result]] = {}
    for r in study.results:
        if (r.set_name, r.metric) == (set_name, metric) and r.phase not in ("majority", "blind"):
            name = f"{r.arm.ordering}{MARK if r.arm.name in unequal else ''}"
            key = (r.arm.row, name, r.phase.replace("_", " "))
            by_phase.setdefault(key, {})[r.group] = r
    rows = [
        (*key, *(interval(by[g].mean.score if g in by else None) for g in ("open", "closed")))
        for key, by in by_phase.items()
    ]
    return Table(
        f"{set_name}: {SHOWN[metric]} after each stage",
        ("model", "training", "phase", "open", "closed"),
        tuple(rows),
        tuple(f"{MARK} {name} {why}" for name, why in unequal.items()),
    )


def main_comparisons(study: Study, set_name: str) -> list[Comparison]:
    """Return what the table of differences shows: three metrics over all questions."""
    return [
        c
        for c in study.comparisons
        if (c.set_name, c.group) == (set_name, "overall") and c.metric in PUBLISHED
    ]


def differences_table(study: Study, set_name: str) -> Table:
    """Return the paired differences over all questions, family by family."""
    shown = main_comparisons(study, set_name)
    reasons = {c.label: "; ".join(c.unequal) for c in shown if c.unequal}
    notes = [
        *(f"p: {test}; Holm: corrected for its family" for test in _tests(shown)),
        "detectable: true difference found with 80 % power at Holm's first step",
        "permutation (sign flips of pictures), McNemar (mid-p, per seed): of these very models on "
        "new questions, not of new trainings; both paired by question, uncorrected",
        *few_seeds(shown),
        *dict.fromkeys(f"{c.label}: {', '.join(c.left_out)} left out" for c in shown if c.left_out),
        *(f"{MARK} {pair}: {why}" for pair, why in reasons.items()),
    ]
    header = ("model", "metric", "difference", "mean [95 % interval]", "p", "Holm", "family", "df")
    return Table(
        f"{set_name}: differences of arms on the same questions",
        (*header, "paired", "detectable", "permutation", "McNemar", "n", "pictures", "seeds"),
        tuple(map(_difference, shown)),
        tuple(notes),
    )


def _tests(comparisons: Sequence[Comparison]) -> list[str]:
    return list(dict.fromkeys(c.crossed.test for c in comparisons))


def _difference(c: Comparison) -> tuple[str, ...]:
    crossed, is_tested = c.crossed, not c.are_identical
    return (
        c.common_row or c.a.model,
        SHOWN[c.metric],
        c.label + (MARK if c.unequal else ""),
        interval(crossed.difference, sign="+") if is_tested else "-",
        probability(crossed.p_value) if is_tested else "-",
        probability(c.p_holm) if is_tested else "-",
        str(c.family_size),
        crossed.degrees_of_freedom,
        "by seed" if crossed.is_paired else "no",
        detectable(c) if is_tested else "-",
        probability(c.permutation.p_value) if is_tested else "-",
        " ".join(probability(t.mid_p_value) for t in c.mcnemar if is_tested) or "-",
        str(crossed.difference.num_examples),
        str(crossed.num_clusters),
        " and ".join(map(str, dict.fromkeys(crossed.num_seeds))),
    )


def detectable(c: Comparison) -> str:
    """Return the detectable difference, or that none of use is detectable."""
    return "none below 50 points" if c.detectable is None else f"{c.detectable:.3f}"


def verdicts_table(study: Study) -> Table:
    """Return the verdict on each planned comparison."""
    rows = [
        (
            v.label,
            f"{v.set_name}, {v.group}, {SHOWN.get(v.metric, v.metric)}",
            "-" if v.gain is None else f"{100 * v.gain:+.1f}".replace("-", MINUS),
            "-" if v.p_holm is None else probability(v.p_holm),
            "-" if v.p_holm is None else probability(v.p_refuted or 0.0),
            str(v.family_size),
            v.comparison.crossed.degrees_of_freedom if v.comparison else "-",
            v.verdict,
            v.reason,
        )
        for v in study.verdicts
    ]
    compared = [v.comparison for v in study.verdicts if v.comparison]
    paired = "by seed" if any(c.crossed.is_paired for c in compared) else "no"
    margins = dict.fromkeys(f"{100 * v.margin:g}" for v in study.verdicts)
    return Table(
        "planned comparisons and their verdicts",
        (*("a \N{MINUS SIGN} b", "on", "gain, points", "Holm: no difference"),
         *("Holm: gain of the margin", "family", "df", "verdict", "reason")),
        tuple(rows),
        (
            *(f"p: {test}, two-sided; paired: {paired}" for test in _tests(compared)),
            f"refuted: the opposite is shown, or a gain of {' or '.join(margins)} points or more "
            "is excluded (TOST's upper test, one-sided)",
            *few_seeds(compared),
            *final_words(study.verdicts),
        ),
    )  # fmt: skip


def published_table(study: Study) -> Table:
    """Return arms beside the published row of their base, and what differs in protocol."""
    cells = {
        (r.arm.name, r.set_name, r.metric): r
        for r in study.results
        if (r.phase, r.group) == ("final", "overall")
    }
    rows = []
    for arm, set_name in product(study.arms, study.set_names):
        first = cells.get((arm.name, set_name, "exact_match"))
        row = row_of(first.runs[0].config) if first else None
        if first is None or row is None or arm.config.get("only_evaluate"):
            continue
        run = first.runs[0]
        results = [cells.get((arm.name, set_name, metric)) for metric in PUBLISHED]
        differing = differences(
            row,
            run.config,
            num_train=run.values["data"]["training"]["num_examples"],
            num_test=first.mean.score.num_examples,
        )
        rows.append(
            (
                f"{arm.name}, {set_name}",
                *(
                    f"{getattr(row, metric):.4f}; {interval(ours.mean.score if ours else None)}"
                    for metric, ours in zip(PUBLISHED, results, strict=True)
                ),
                "; ".join(differing) or "nothing that was stated",
            )
        )
    return Table(
        "published value; ours [95 % interval]",
        ("arm", *(SHOWN[metric] for metric in PUBLISHED), "protocol: published, here"),
        tuple(rows),
        (f"published without intervals, one run each, by {SOURCE}", f"not stated: {NOT_STATED}"),
    )


def missing_runs_table(study: Study) -> Table:
    """Return the runs that are in no table, and why."""
    rows = [
        (str(run.directory), run.state, run.error or "")
        for run in study.runs
        if not run.is_finished
    ]
    return Table("runs that are not in the tables", ("run", "state", "why"), tuple(rows))


def _sizes(study: Study, set_name: str) -> list[str]:
    key = (set_name, "final", "overall")
    means = [r.mean for r in study.results if (r.set_name, r.phase, r.group) == key]
    return [
        f"{mean.score.num_examples} questions on {mean.num_clusters} pictures; intervals "
        "over new pictures and, from two seeds on, new trainings"
        for mean in means[:1]
    ]
