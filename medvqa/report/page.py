"""Study -> report.html: one file with data, pictures, style and script; nothing is fetched."""

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import product
from pathlib import Path
from typing import Any

from medvqa.evaluation.figure import page_svg
from medvqa.evaluation.score import SHOWN
from medvqa.report import plots
from medvqa.report.arms import Arm
from medvqa.report.confidence_tables import measures_table, overconfidence_table, probes_table
from medvqa.report.rows import comparison_row, result_rows, run_rows, unequal_arms, verdict_row
from medvqa.report.runs import Answers, Question, Run
from medvqa.report.study import Study, phases_in_order
from medvqa.report.table import html_table
from medvqa.report.tables import main_comparisons
from medvqa.report.thumbnails import Pictures
from medvqa.report.verdicts import few_seeds, final_words

ASSETS = Path(__file__).parent
# The baselines that every run of a model repeats are one column.
SHARED_PHASES = ("majority", "zero_shot")
DIGITS = 4  # of a score


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


@dataclass(frozen=True)
class Column:
    """The answers of one run in one phase."""

    arm: Arm
    run: Run
    answers: Answers


def columns_of(arms: Sequence[Arm], set_name: str) -> list[Column]:
    """Return what the browser can show side by side: final, blind, and each baseline once."""
    columns: dict[Hashable, Column] = {}
    for phase, arm in product(("final", "blind", *SHARED_PHASES), arms):
        for run in arm.runs:
            if answers := run.answered(phase, set_name):
                same = (arm.model, answers.questions, answers.texts)
                key = (phase, same if phase in SHARED_PHASES else run.directory)
                columns.setdefault(key, Column(arm, run, answers))
    return list(columns.values())


class Texts(dict[str, int]):
    """Text -> number; each text is stored once."""

    def number(self, text: str) -> int:
        """Return the text's number."""
        return self.setdefault(text, len(self))


def encode(
    arms: Sequence[Arm], set_name: str, shown: Mapping[str, tuple[str, ...]], pictures: Texts
) -> dict[str, Any]:
    """Return one set's predictions for the page.

    A question's different answers are listed once with their scores, which depend on nothing else.
    A column is then one small number per question, -1 where it was not asked.

    `shown` maps a cluster to its pictures, whose numbers all sets share.
    """
    columns = columns_of(arms, set_name)
    texts = Texts()
    order: dict[Question, int] = {}
    for column in columns:
        for question in column.answers.questions:
            order.setdefault(question, len(order))
    options: list[dict[tuple[Any, ...], int]] = [{} for _ in order]
    codes = [list(_codes(column.answers, order, options, texts)) for column in columns]
    return {
        "name": set_name,
        "questions": [_described(question, shown, texts, pictures) for question in order],
        "options": [list(of_question) for of_question in options],
        "columns": [
            {
                "arm": column.arm.name,
                "phase": column.answers.phase,
                "seed": column.run.seed,
                "run": str(column.run.directory),
                "codes": column_codes,
            }
            for column, column_codes in zip(columns, codes, strict=True)
        ],
        "metrics": list(SHOWN),
        "texts": list(texts),
    }


def _described(
    question: Question, shown: Mapping[str, tuple[str, ...]], texts: Texts, pictures: Texts
) -> list[Any]:
    return [
        question.id,
        texts.number(question.text),
        [texts.number(reference) for reference in question.references],
        question.answer_type,
        texts.number(question.source),
        texts.number(question.split),
        [pictures.number(key) for key in shown.get(question.cluster, ())],
    ]


def _codes(
    answers: Answers,
    order: Mapping[Question, int],
    options: Sequence[dict[tuple[Any, ...], int]],
    texts: Texts,
) -> Iterator[int]:
    """Yield the number of the run's answer among the answers to each question, in `order`."""
    rows = {question: row for row, question in enumerate(answers.questions)}
    scores = {metric: values.tolist() for metric, values in answers.scores.items()}
    for question, place in order.items():
        row = rows.get(question)
        if row is None:
            yield -1
            continue
        values = (_rounded(scores[metric][row]) for metric in SHOWN)
        answer = (texts.number(answers.texts[row]), *values)
        yield options[place].setdefault(answer, len(options[place]))


def _rounded(value: float) -> float | int | None:
    """Return a short form of the score; None where the metric does not apply."""
    if value != value:  # NaN
        return None
    short = round(value, DIGITS)
    return int(short) if short == int(short) else short
