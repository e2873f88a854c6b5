"""A table of texts, and how it is written: Markdown, LaTeX (booktabs), HTML or on the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from medvqa.data.example import Score
from medvqa.tracking import terminal

if TYPE_CHECKING:
    from rich.table import Table as RichTable

MINUS = "\N{MINUS SIGN}"
LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "†": r"$^\dagger$",
        MINUS: "$-$",
    }
)


@dataclass(frozen=True)
class Table:
    """A table before it has a format; `notes` stand below it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def interval(score: Score | None, sign: str = "") -> str:
    """Return for example `0.459 [0.412, 0.506]`."""
    if score is None:
        return "-"
    numbers = (
        f"{value:{sign}.3f}".replace("-", MINUS) for value in (score.mean, score.low, score.high)
    )
    return "{} [{}, {}]".format(*numbers)


def probability(p: float) -> str:
    """Return a p-value with the digits that carry meaning."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def markdown(table: Table) -> str:
    """Return the table in GitHub's Markdown."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    body = [line(table.header), line(["---"] * len(table.header)), *map(line, table.rows)]
    notes = "".join(f"\n{note}  " for note in table.notes)
    return f"## {table.title}\n\n" + "\n".join(body) + (f"\n{notes}" if notes else "") + "\n"


def latex(table: Table) -> str:
    """Return the table for LaTeX's package booktabs."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(cell.translate(LATEX) for cell in cells) + r" \\"

    notes = "".join(f"\n\\par\\footnotesize {note.translate(LATEX)}" for note in table.notes)
    return f"""\
\\begin{{table}}
\\caption{{{table.title.translate(LATEX)}}}
\\begin{{tabular}}{{{"l" * len(table.header)}}}
\\toprule
{line(table.header)}
\\midrule
{chr(10).join(map(line, table.rows))}
\\bottomrule
\\end{{tabular}}{notes}
\\end{{table}}
"""


def html_table(table: Table) -> str:
    """Return the table as HTML, all texts escaped, with its notes below."""
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


def rich_table(table: Table) -> "RichTable":
    """Return the table for a terminal."""
    caption = "\n".join(table.notes) or None
    return terminal.table(
        table.title, table.header, table.rows, caption=caption, caption_justify="left"
    )
