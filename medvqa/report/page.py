"""Study -> report.html: one file with data, pictures, style and script; nothing is fetched."""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from medvqa.evaluation.figure import page_svg
from medvqa.evaluation.score import SHOWN
from medvqa.report import plots
from medvqa.report.answers import Texts, encode
from medvqa.report.confidence_tables import confidence_html, probes_html
from medvqa.report.rows import comparison_row, result_rows, run_rows, unequal_arms, verdict_row
from medvqa.report.study import Study, phases_in_order
from medvqa.report.tables import main_comparisons
from medvqa.report.thumbnails import Pictures
from medvqa.report.verdicts import few_seeds, final_words

ASSETS = Path(__file__).parent


def page(study: Study, pictures: Pictures, *, title: str) -> str:
    """Return the page's HTML."""
    keys = Texts()
    sets = [encode(study.arms, name, pictures.shown, keys) for name in study.set_names]
    parts = {
        "title": escape(title),
        "style": _asset("page.css"),
        "script": _asset("page.js"),
        "loss": _figure(study, "loss"),
        "cost": _figure(study, "cost"),
        "confidence": confidence_html(study),
        "probes": probes_html(study),
        "study": _script(_study(study, pictures, title)),
        "answers": _script({"sets": sets}),
        "pictures": _script({"urls": [pictures.urls.get(key, "") for key in keys]}),
    }
    # A model's answer may contain a marker: each part is put in once, left to right.
    pieces = []
    rest = _asset("page.html")
    while rest:
        before, marker, rest = rest.partition("{{")
        pieces.append(before)
        if marker:
            name, _, rest = rest.partition("}}")
            pieces.append(parts[name])
    return "".join(pieces)


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _figure(study: Study, name: str) -> str:
    figure = plots.figures(study)[name]()
    return page_svg(figure) if figure else "<p>Nothing to draw.</p>"


def _script(values: Mapping[str, Any]) -> str:
    """Return JSON that no `</script>` inside an answer can end."""
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _study(study: Study, pictures: Pictures, title: str) -> dict[str, Any]:
    unequal = unequal_arms(study)
    return {
        "title": title,
        "sets": list(study.set_names),
        "metrics": SHOWN,
        "phases": phases_in_order(study),
        "arms": [
            {
                "name": arm.name,
                "row": arm.row,
                "ordering": arm.ordering,
                "unequal": unequal.get(arm.name, ""),
                "remark": "; ".join(
                    f"{name}: {text}"
                    for name in study.set_names
                    if (text := study.remarks(name)[arm.name])
                ),
                "seeds": [run.seed for run in arm.runs],
            }
            for arm in study.arms
        ],
        "results": result_rows(study),
        "comparisons": [_finite(comparison_row(c)) for c in study.comparisons],
        "verdicts": [_finite(verdict_row(v)) for v in study.verdicts],
        "final_words": final_words(study.verdicts),
        "few_seeds": {name: few_seeds(main_comparisons(study, name)) for name in study.set_names},
        "runs": run_rows(study),
        "notes": [*study.notes, *pictures.notes],
        "within": list(study.within),
    }


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row for JSON, which has no infinity: an odds ratio can be infinite."""
    return {k: "infinite" if v in (float("inf"), float("-inf")) else v for k, v in row.items()}
