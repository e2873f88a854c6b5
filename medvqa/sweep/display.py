"""A grid on the screen: the table, live while it runs, and the last lines of each failure."""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from medvqa.sweep.job import CONSOLE, Job, State, Status, read_status, tail
from medvqa.sweep.status import Row, counts, read_rows
from medvqa.tracking.terminal import console, table

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger(__name__)

SHOWN_LINES = 12
FRAME = 6  # lines of a table that are no rows
STYLES = {"finished": "green", "running": "cyan", "waiting": "dim", "interrupted": "yellow"}


def grid_table(rows: Sequence[Row], *, title: str) -> "Table":
    """Return the rows as a table with the states in colours."""
    from rich.text import Text

    def number(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    cells: list[list[str | Text]] = [
        [
            str(row.job),
            row.name,
            Text(row.state, STYLES.get(row.state, "red")),
            row.slot,
            "" if row.step is None else f"{row.step}/{row.num_steps or '?'}",
            *(number(value, 4) for value in (row.loss, row.exact_match, row.f1)),
            number(row.seconds, 0),
        ]
        for row in rows
    ]
    columns = ("job", "cell", "state", "gpu", "step", "loss", "EM", "F1", "seconds")
    return table(title, columns, cells)


def time_left(rows: Sequence[Row]) -> str:
    """Return for example `; 40 s per cell, about 3 min left`, or nothing before a cell has ended.

    Cells that wait or run are taken to need as long as the finished ones did on average, as many
    at once as run now.
    """
    seconds = [row.seconds for row in rows if row.state == State.finished.value and row.seconds]
    running = [row for row in rows if row.state == State.running.value]
    waiting = sum(row.state == State.waiting.value for row in rows)
    if not seconds or not (running or waiting):
        return ""
    each = sum(seconds) / len(seconds)
    undone = sum(1 - (row.step or 0) / (row.num_steps or 1) for row in running)
    left = each * (waiting + undone) / max(1, len(running))
    return f"; {each:.0f} s per cell, about {max(1, round(left / 60))} min left"


def shortened(rows: Sequence[Row], num_lines: int) -> list[Row]:
    """Return as many rows as a terminal has lines for, running and failed ones before the rest."""
    quiet = (State.finished.value, State.waiting.value)
    ranked = sorted(rows, key=lambda row: (row.state in quiet, row.state == quiet[0], row.job))
    return sorted(ranked[:num_lines], key=lambda row: row.job)


@contextmanager
def live_table(sweep: Path) -> Iterator[Callable[[Job, Status], None]]:
    """Show the grid while it runs: a table on a terminal, else one line per change of a job."""
    if not sys.stderr.isatty():
        yield _log_change
        return
    from rich.live import Live

    screen = console(stderr=True)

    def current() -> "Table":
        rows = read_rows(sweep)
        visible_rows = shortened(rows, max(1, screen.height - FRAME))
        return grid_table(visible_rows, title=f"{counts(rows)}{time_left(rows)}")

    with Live(console=screen, get_renderable=current, refresh_per_second=1, transient=True):
        yield lambda job, status: None


def _log_change(job: Job, status: Status) -> None:
    label = f"job {job.number} ({job.name})"
    if status.state is State.running:
        log.info("%s started%s", label, f" on GPU {status.slot}" if status.slot else "")
    else:
        error = f": {status.error}" if status.error else ""
        log.info("%s %s after %.1f s%s", label, status.state.value, status.seconds or 0, error)


def show_failures(jobs: Sequence[Job], sweep: Path) -> None:
    """Print the end of the console log of each job that failed."""
    for job in jobs:
        status = read_status(job.directory)
        if job.is_finished or status.state in (State.waiting, State.interrupted, State.running):
            continue
        path = job.directory / CONSOLE
        lines = "\n".join(f"  | {line}" for line in tail(path, SHOWN_LINES))
        sys.stderr.write(
            f"job {job.number} ({job.name}) {status.state.value}: {status.error}; "
            f"the end of {path.relative_to(sweep)}:\n{lines}\n"
        )
