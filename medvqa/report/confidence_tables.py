"""Confidence and probes of a study -> tables, CSV rows, and a part of the page without a script."""

from collections.abc import Sequence
from html import escape
from typing import Any

from medvqa.evaluation.confidence_summary import MEASURES
from medvqa.evaluation.figure import page_svg
from medvqa.evaluation.probing import MEASURES as RATES
from medvqa.report import plots
from medvqa.report.confidence import ArmConfidence, ArmProbe
from medvqa.report.rows import Row
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


def confidence_rows(confidence: Sequence[ArmConfidence]) -> list[Row]:
    """Return all lines of confidence.csv."""
    return [
        {**_place(own), "phase": own.phase, "group": own.group, **_score(name, score)}
        for own in confidence
        for name, score in own.measures.items()
    ]


def probe_rows(probes: Sequence[ArmProbe]) -> list[Row]:
    """Return all lines of probes.csv."""
    return [
        {**_place(own), "probe": own.probe, **_score(name, score)}
        for own in probes
        for name, score in own.rates.items()
    ]


def _place(own: ArmConfidence | ArmProbe) -> Row:
    return {"set": own.set_name, "arm": own.arm.name, "num_seeds": own.num_seeds}


def _score(name: str, score: Any) -> Row:
    return {"measure": name, "mean": score.mean, "low": score.low, "high": score.high,
            "num_questions": score.num_examples}  # fmt: skip


def confidence_html(study: Study) -> str:
    """Return the page's section: per set the diagrams and tables, all texts escaped."""
    parts = []
    for name in study.set_names:
        figure = plots.confidence(study, name)
        if figure:
            label = f"Reliability diagram and risk-coverage curve of each arm on {name}"
            parts.append(
                f'<figure class="plot" role="img" aria-label="{escape(label)}">'
                f"{page_svg(figure)}</figure>"
            )
        tables = (make(study, name) for make in (measures_table, overconfidence_table))
        parts += [html_table(table) for table in tables if table.rows]
    return "".join(parts) or '<p class="note">No run recorded log-probabilities.</p>'


def probes_html(study: Study) -> str:
    """Return the page's section on probes."""
    tables = [probes_table(study, name) for name in study.set_names]
    html = "".join(html_table(table) for table in tables if table.rows)
    return html or (
        '<p class="note">No run was asked any: <code>evaluation.probes=[blank,...]</code>.</p>'
    )


def html_table(table: Table) -> str:
    """Return the table as HTML with its notes below."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">'
        f"<table><caption>{escape(table.title)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>{notes}"
    )
