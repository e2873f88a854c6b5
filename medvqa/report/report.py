"""Runs -> their report: tables, figures and one page, to show or to write."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path

from medvqa.report.confidence_tables import confidence_tables
from medvqa.report.matching import Settings
from medvqa.report.page import page
from medvqa.report.plots import write_figures
from medvqa.report.rows import confidence_rows, probe_rows, write_rows
from medvqa.report.study import Study, read_study
from medvqa.report.table import Table, latex, markdown, rich_table
from medvqa.report.tables import tables
from medvqa.report.thumbnails import NONE, Pictures, read_pictures
from medvqa.report.verdicts import final_words
from medvqa.tracking.record import write_csv, write_text
from medvqa.tracking.terminal import plain_text

PAGE_HEIGHT_PX = 800  # in a notebook


@dataclass(frozen=True)
class Report:
    """A report in memory; a notebook shows its page.

    Attributes:
        study: The numbers: runs, arms, results, comparisons and verdicts.
        pictures: Thumbnails of the questions.
        title: Of the page.
    """

    study: Study
    pictures: Pictures
    title: str

    @cached_property
    def tables(self) -> list[Table]:
        """Each table of the report, with its notes."""
        return [*tables(self.study), *confidence_tables(self.study)]

    @cached_property
    def html(self) -> str:
        """The page: one file with data, pictures, style and script."""
        return page(self.study, self.pictures, title=self.title)

    @property
    def closing_lines(self) -> list[str]:
        """How many runs there are, in which state, and each note."""
        states = Counter(run.state for run in self.study.runs)
        counts = ", ".join(f"{number} {state}" for state, number in states.items())
        first = f"{len(self.study.runs)} runs: {counts}; {len(self.study.arms)} arms"
        notes = (*self.study.notes, *self.pictures.notes)
        return [first, *(f"note: {note}" for note in notes)]

    @property
    def verdicts(self) -> list[str]:
        """One line per planned comparison."""
        return final_words(self.study.verdicts)

    def write(self, directory: Path, *, figures: bool = True) -> Path:
        """Write the page, the tables, the numbers and the figures; return the page's path."""
        write_rows(self.study, directory)
        write_csv(directory / "confidence.csv", confidence_rows(self.study.confidence))
        write_csv(directory / "probes.csv", probe_rows(self.study.probes))
        write_text(directory / "tables.md", "\n".join(map(markdown, self.tables)))
        write_text(directory / "tables.tex", "\n".join(map(latex, self.tables)))
        if figures:
            write_figures(self.study, directory)
        write_text(directory / "report.html", self.html)
        return directory / "report.html"

    def __str__(self) -> str:
        shown = plain_text(*map(rich_table, self.tables))
        return "\n".join([shown, *self.closing_lines, *self.verdicts])

    def _repr_html_(self) -> str:
        style = f"width: 100%; height: {PAGE_HEIGHT_PX}px; border: 0"
        return f'<iframe style="{style}" srcdoc="{escape(self.html)}"></iframe>'


def read_report(
    places: Sequence[Path],
    settings: Settings | None = None,
    *,
    title: str | None = None,
    with_pictures: bool = True,
) -> Report:
    """Return the report of run directories; see `read_study` for what is refused."""
    study = read_study(places, settings)
    pictures = read_pictures(study.arms) if with_pictures else NONE
    return Report(study, pictures, title or ", ".join(place.name for place in places))
