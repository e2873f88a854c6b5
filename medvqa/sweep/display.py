"""What a launcher shows: a live table, the end of the log of each failure, the table of all."""

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medvqa.sweep.job import CONSOLE, Job, State, Status, read_status, tail
from medvqa.sweep.status import counts, read_rows, shortened, table

log = logging.getLogger(__name__)

SHOWN_LINES = 12
FRAME = 6  # lines of a table that are no rows


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


@contextmanager
def live_table(sweep: Path) -> Iterator[Callable[[Job, Status], None]]:
    """Show the grid while it runs: a table on a terminal, else a line where a job changes."""
    if not sys.stderr.isatty():
        yield _log_change
        return
    from rich.console import Console
    from rich.live import Live

    done = threading.Event()
    console = Console(stderr=True)
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def refresh() -> None:
            while not done.wait(1.0):
                rows = read_rows(sweep)
                shown = shortened(rows, max(1, console.height - FRAME))
                live.update(table(shown, title=counts(rows)), refresh=True)

        thread = threading.Thread(target=refresh, daemon=True)
        thread.start()
        try:
            yield lambda job, status: None
        finally:
            done.set()
            thread.join()


def _log_change(job: Job, status: Status) -> None:
    what = f"job {job.number} ({job.name})"
    if status.state is State.running:
        log.info("%s started%s", what, f" on GPU {status.slot}" if status.slot else "")
    else:
        error = f": {status.error}" if status.error else ""
        log.info("%s %s after %.1f s%s", what, status.state.value, status.seconds or 0, error)


def show_table(rows: Any, sweep: Path) -> None:
    """Print the whole grid and where its files are."""
    from rich.console import Console

    title = f"{counts(rows)}; summary.csv and all runs in {sweep}"
    Console(width=None if Console().is_terminal else 160).print(table(rows, title=title))
