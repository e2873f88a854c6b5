"""`medvqa preflight`: what a run or a grid will do, need and fail at, before it costs GPU hours."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medvqa.config.command_line import CommandParser
from medvqa.config.compose import checked, compose_cells
from medvqa.config.errors import MISTAKES, UserError, explain
from medvqa.config.secrets import masked
from medvqa.tracking.progress import track
from medvqa.tracking.record import write_json
from medvqa.tracking.terminal import console

if TYPE_CHECKING:
    from medvqa.preflight.tables import Assumptions, CellReport

WOULD_FAIL = 1


def main_preflight(argv: Sequence[str]) -> None:
    """Check data, tokens, memory, leaks and power of a run; leave with 1 if a cell would fail."""
    options = _parser().parse_intermixed_args(argv)
    if options.sample < 1:
        raise UserError(f"--sample must be 1 or more, got {options.sample}")
    from medvqa.preflight.tables import Assumptions

    assumptions = Assumptions(
        at_most=options.sample,
        probe=options.probe,
        discordant_fraction=options.discordant,
        design_effect=options.design_effect,
    )
    reports = inspect_cells(options.overrides, assumptions, is_sweep=options.multirun)
    show(reports, assumptions)
    if options.json is not None:
        cells = [report.as_json() for report in reports]
        write_json(options.json, {"overrides": masked(options.overrides), "cells": cells})
    if any(report.problems for report in reports):
        sys.exit(WOULD_FAIL)


def _parser() -> CommandParser:
    parser = CommandParser(
        main_preflight,
        {
            "medvqa preflight model=qwen3_vl_8b data=vqa_rad data.path=DIR": "one run",
            "medvqa preflight -m curriculum=open_first,mixed seed=1,2,3": "each cell of a grid",
        },
    )
    add = parser.group("what to check")
    add("overrides", nargs="*", metavar="key=value", help="as for train.py: model=... seed=1,2")
    add("-m", "--multirun", action="store_true", help="check every cell of a grid")
    add = parser.group("how")
    add("--sample", type=int, default=20_000, metavar="N",
        help="count the tokens of at most N training samples (default 20,000), drawn by data.seed"
    )  # fmt: skip
    add("--probe", action=argparse.BooleanOptionalAction, default=None,
        help="load the model and time a few steps (default: where there is a GPU)")  # fmt: skip
    add("--discordant", type=float, default=0.2, metavar="SHARE",
        help="of questions that exactly one of two runs answers correctly, for the detectable "
        "effect (default 0.2)")  # fmt: skip
    add("--design-effect", type=float, default=1.5, metavar="FACTOR",
        help="by which questions on one picture repeat each other (default 1.5)")  # fmt: skip
    add = parser.group("output")
    add("--json", type=Path, metavar="FILE", help="also write the report there")
    return parser


def inspect_cells(
    overrides: Sequence[str], assumptions: "Assumptions", *, is_sweep: bool
) -> list["CellReport"]:
    """Return one report per cell.

    Raises:
        UserError: On a mistake in the command or the data; in a grid it names the cell.
    """
    composed = compose_cells(overrides, is_sweep=is_sweep)
    # Every config is checked before any data is read.
    configs = []
    for swept, cfg in composed:
        try:
            configs.append((swept, checked(cfg, runs_here=False)))
        except MISTAKES as error:
            raise UserError(_named(swept, explain(error))) from error
    from medvqa.preflight.inspector import Inspector

    inspector = Inspector(assumptions)
    reports = []
    for swept, config in track(configs, description="checking cells"):
        try:
            reports.append(inspector.inspect(config, swept))
        except UserError as error:
            raise UserError(_named(swept, str(error))) from error
    return reports


def _named(swept: Sequence[str], text: str) -> str:
    return f"job {' '.join(swept)}: {text}" if swept else text


def show(reports: Sequence["CellReport"], assumptions: "Assumptions") -> None:
    """Print the tables on stdout, then each note and problem once."""
    from medvqa.preflight.tables import cell_table, grid_table

    console().print(
        grid_table(reports) if len(reports) > 1 else cell_table(reports[0], assumptions)
    )
    notes = dict.fromkeys(note for report in reports for note in report.notes)
    lines = [f"note: {note}" for note in notes]
    lines += [f"would fail: {_named(r.swept, problem)}" for r in reports for problem in r.problems]
    sys.stdout.writelines(f"{line}\n" for line in lines)
