"""`medvqa report DIR ...`: run directories -> tables, figures and one page, to show or to write."""

import os
import sys
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path

from medvqa.config.command_line import CommandParser
from medvqa.config.machine import make_directory
from medvqa.evaluation.figure import own_style
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
from medvqa.tracking.terminal import console, plain_text

PAGE_HEIGHT_PX = 800  # in a notebook
# The record of a small finished grid, to see a report before any run; made by tools.pack_example.
ARCHIVE = Path(__file__).with_name("example.tar.xz")
TITLE = "Example: six small runs on drawn pictures"


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
        with own_style():
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
            with own_style():
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


def main_report(argv: Sequence[str]) -> None:
    """Compare the runs of grids and show them as tables, figures and one HTML page."""
    parser = _parser()
    options = parser.parse_args(argv)
    if (options.example is None) != bool(options.directory):
        parser.error("give directories of runs and grids, or --example DIR")
    places, out = options.directory, options.out
    if options.example:
        places = [unpack_example(options.example)]
        out = out or options.example
    settings = Settings(
        within=tuple(options.within),
        baseline=options.baseline,
        allow_unequal=options.allow_unequal,
        seeds_are_paired=options.paired_seeds,
        num_samples=options.samples,
    )
    # A report reads what is on this machine: no data set is fetched for its pictures.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    report = read_report(
        places,
        settings,
        title=options.title or (TITLE if options.example else None),
        with_pictures=not options.no_pictures,
    )
    show(report, report.write(out or places[0] / "report", figures=not options.no_plots))


def _parser() -> CommandParser:
    parser = CommandParser(
        main_report,
        {
            "medvqa report --example DIR": "see a report before any run",
            "medvqa report multirun/GRID": "tables, figures and one page of a grid",
            "medvqa report outputs/A outputs/B --out both": "two runs, in ./both",
            "medvqa report multirun/GRID --within training.max_steps": "equal budgets only",
        },
    )
    add = parser.group("what to read and where to write")
    add("directory", type=Path, nargs="*", help="a grid below multirun/, a run below outputs/")
    add("--example", type=Path, metavar="DIR",
        help="in place of directories: write the report of six small runs to DIR")  # fmt: skip
    add("--out", type=Path, metavar="DIR", help="where to write; DIRECTORY/report if not given")
    add = parser.group("what to compare")
    add(
        "--within", metavar="KEY", action="append", default=[],
        help="compare only arms that agree in this config key; may be repeated",
    )  # fmt: skip
    add("--baseline", metavar="ARM", help="compare each arm with this one only")
    add("--allow-unequal", action="store_true", help="mark unfair pairs in place of refusing them")
    add("--paired-seeds", action="store_true", help="equal seeds of two arms are paired")
    add("--samples", type=int, default=2000, metavar="N",
        help="sign flips of the permutation test (default 2,000)")  # fmt: skip
    add = parser.group("the page")
    add("--title", metavar="TEXT", help="its title; the directories' names if not given")
    add("--no-pictures", action="store_true", help="leave the pictures out")
    add("--no-plots", action="store_true", help="write no PNG and SVG files")
    return parser


def unpack_example(directory: Path) -> Path:
    """Write the record below the directory and return the grid's directory.

    Raises:
        UserError: If the directory cannot be written.
    """
    grid = directory / "grid"
    make_directory(grid, "another directory")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(grid, filter="data")
    return grid


def show(report: Report, page: Path) -> None:
    """Print the tables, how many runs they hold, the notes, and where the page is."""
    for table in report.tables:
        console().print(rich_table(table))
    sys.stdout.writelines(f"{line}\n" for line in report.closing_lines)
    size = page.stat().st_size / 1e6
    sys.stdout.write(f"everything is in {page.parent}; open {page} ({size:.1f} MB)\n")
    sys.stdout.writelines(f"{line}\n" for line in report.verdicts)
