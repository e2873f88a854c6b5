"""`medvqa report DIR ...`: run directories -> tables, figures and one page."""

import os
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from medvqa.config.command_line import CommandParser
from medvqa.config.machine import make_directory
from medvqa.report.matching import Settings
from medvqa.report.report import Report, read_report
from medvqa.report.table import rich_table
from medvqa.tracking.terminal import console

# The record of a small finished grid, to see a report before any run; made by tools.pack_example.
ARCHIVE = Path(__file__).with_name("example.tar.xz")
TITLE = "Example: six small runs on drawn pictures"


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
