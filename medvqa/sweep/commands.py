"""`medvqa status` and `medvqa resume`."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from medvqa.config.cells import quoted
from medvqa.config.command_line import CommandParser
from medvqa.config.errors import UserError
from medvqa.config.machine import NOT_INHERITED
from medvqa.config.secrets import MASK
from medvqa.sweep.display import grid_table, time_left
from medvqa.sweep.status import counts, read_rows, strays, sweep_json, write_summary
from medvqa.tracking.files import is_locked
from medvqa.tracking.terminal import console


def main_status(argv: Sequence[str]) -> None:
    """Show a grid as a table, while it runs and after; also writes summary.csv and summary.json."""
    parser = CommandParser(
        main_status,
        {
            "medvqa status multirun/GRID": "one table, now",
            "medvqa status multirun/GRID --watch": "a table every five seconds",
        },
    )
    add = parser.group("grid")
    add("sweep", type=Path, help="a directory below multirun/")
    add("--watch", action="store_true", help="repeat the table until the launcher ends")
    options = parser.parse_args(argv)
    while True:
        rows = read_rows(options.sweep)
        write_summary(options.sweep, rows)
        is_running = is_locked(options.sweep)
        title = counts(rows) + (time_left(rows) if is_running else "")
        console().print(grid_table(rows, title=title))
        sys.stdout.writelines(f"{line}\n" for line in strays(options.sweep))
        if not (options.watch and is_running):
            return
        time.sleep(5)


def main_resume(argv: Sequence[str]) -> None:
    """Run the unfinished jobs of a grid: its own command, once more."""
    parser = CommandParser(
        main_resume,
        {
            "medvqa resume multirun/GRID": "the same command, once more",
            "medvqa resume multirun/GRID hydra.launcher.slots=[1]": "on another GPU",
        },
    )
    add = parser.group("grid")
    add("sweep", type=Path, help="a directory below multirun/")
    add("overrides", nargs="*", metavar="key=value", help="in place of the grid's own")
    options = parser.parse_args(argv)
    stored = sweep_json(options.sweep)
    directory = options.sweep.resolve()
    replaced_keys = {"fresh", *(text.partition("=")[0].lstrip("+") for text in options.overrides)}
    first = [
        text
        for text in map(str, stored["arguments"])
        if text.partition("=")[0].lstrip("+") not in replaced_keys
    ]
    hidden = " ".join(text for text in first if MASK in text)
    if hidden:
        raise UserError(f"no file keeps a secret; give this part of the command again: {hidden}")
    arguments = [*first, *options.overrides, f"hydra.sweep.dir={quoted(str(directory))}"]
    os.chdir(stored["working_directory"])
    sys.stdout.flush()
    environment = {name: text for name, text in os.environ.items() if name not in NOT_INHERITED}
    command = [sys.executable, "-m", "medvqa.cli", "train", *arguments]
    os.execve(sys.executable, command, environment)
