"""Confidence and probes of a study -> tables."""

from medvqa.evaluation.confidence_summary import MEASURES
from medvqa.evaluation.probed import MEASURES as RATES
from medvqa.report.runs import AGREEMENT
from medvqa.report.study import Study
from medvqa.report.table import Table, interval, probability
from medvqa.report.tables import PHASE_NAMES


def confidence_tables(study: Study) -> list[Table]:
    """Return the tables of each set: confidence, differences in overconfidence, probes."""
    makers = (measures_table, overconfidence_table, probes_table)
    every = [make(study, name) for name in study.set_names for make in makers]
    return [table for table in every if table.rows]


def measures_table(study: Study, set_name: str) -> Table:
    """Return one row per arm: all measures over all questions; the base once per model."""
    rows: dict[tuple[str, ...], None] = {}
    columns = {**MEASURES, AGREEMENT: AGREEMENT}
    shown = [c for c in study.confidence if (c.set_name, c.group) == (set_name, "overall")]
    for own in sorted(shown, key=lambda c: (c.arm.row, c.phase == "final")):
        name = PHASE_NAMES[own.phase].format(own.arm.ordering)
        cells = (interval(own.measures.get(measure)) for measure in columns)
        rows[(own.arm.row, name, str(own.num_seeds), *cells)] = None
    partial = [c for c in shown if c.measures["confidence"].num_examples < c.num_asked]
    return Table(
        f"{set_name}: confidence against exact match, all questions",
        ("model", "training", "seeds", *columns.values()),
        tuple(rows),
        (
            "overconfidence: mean confidence minus exact match; ECE: expected calibration error, "
            "15 bins; AURC: area under the risk-coverage curve, lower is better",
            "EM at 50 %: of the half of the questions with the most confident answers; AUROC: "
            "chance that a right answer has more confidence than a wrong one; agreement: share of "
            "equal answers to rephrasings (evaluation.rephrasings)",
            *(f"{c.arm.name}: {c.measures['confidence'].num_examples} of {c.num_asked} answers "
              "have a confidence" for c in partial),
        ),
    )  # fmt: skip


def overconfidence_table(study: Study, set_name: str) -> Table:
    """Return the differences of arms in overconfidence."""
    rows = [
        (
            c.common_row or c.a.model,
            c.label,
            interval(c.crossed.difference, sign="+"),
            probability(c.crossed.p_value),
            probability(c.p_holm),
            str(c.family_size),
        )
        for c in study.overconfidence
        if c.set_name == set_name
    ]
    tests = dict.fromkeys(c.crossed.test for c in study.overconfidence)
    return Table(
        f"{set_name}: differences of arms in overconfidence",
        ("model", "difference", "mean [95 % interval]", "p", "Holm", "family"),
        tuple(rows),
        ("above 0: the first arm is more overconfident", *(f"p: {test}" for test in tests)),
    )


def probes_table(study: Study, set_name: str) -> Table:
    """Return one row per arm and probe: its rates beside the normal exact match."""
    own = [probe for probe in study.probes if probe.set_name == set_name]
    shown = [name for name in RATES if any(name in probe.rates for probe in own)]
    rows = [
        (probe.arm.name, probe.probe.replace("_", " "), str(probe.num_seeds),
         *(interval(probe.rates.get(name)) for name in shown))
        for probe in own
        if not probe.reason
    ]  # fmt: skip
    silent = dict.fromkeys(
        f"{probe.probe.replace('_', ' ')}: not asked, {probe.reason}"
        for probe in own
        if probe.reason
    )
    return Table(
        f"{set_name}: hallucination probes of the final models",
        ("arm", "probe", "seeds", *(RATES[name] for name in shown)),
        tuple(rows) or tuple((text,) for text in silent),
        (
            "changed: another answer than to the normal question; affirms: assents to a false "
            "lead, an invented finding or a wrong option",
            *silent,
        ),
    )
