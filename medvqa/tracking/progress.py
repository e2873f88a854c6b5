"""One live line per phase on a terminal, with rate and time left; elsewhere one line per minute."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from medvqa.tracking.terminal import console

if TYPE_CHECKING:
    from rich.progress import Progress, Task

log = logging.getLogger(__name__)

Item = TypeVar("Item")
LOG_EVERY_S = 60.0
_displays: "list[Progress]" = []  # the one display of the process, while a phase runs


def track(items: Sequence[Item], *, description: str) -> Iterable[Item]:
    """Iterate over the items with a live line on stderr, or a logged one where that is no terminal.

    A phase inside a phase, such as an evaluation during training, has a line below it.
    """
    return (_live if sys.stderr.isatty() else _logged)(items, description)


def _logged(items: Sequence[Item], description: str) -> Iterator[Item]:
    started = last_logged = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last_logged >= LOG_EVERY_S and number < len(items):
            last_logged = now
            each = (now - started) / number
            left = each * (len(items) - number) / 60
            state = (description, number, len(items), rate(1 / each), left)
            log.info("%s: %d of %d, %s, about %.0f min left", *state)


def _live(items: Sequence[Item], description: str) -> Iterator[Item]:
    is_outer = not _displays
    if is_outer:
        _displays.append(_display())
        _displays[0].start()
    display = _displays[0]
    task = display.add_task(description, total=len(items))
    try:
        for item in items:
            yield item
            display.advance(task)
    finally:
        display.remove_task(task)
        if is_outer:
            _displays.pop().stop()


def _display() -> "Progress":
    from rich import progress

    class Rate(progress.ProgressColumn):
        def render(self, task: "Task") -> str:
            return rate(task.finished_speed or task.speed)

    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=30),
        progress.MofNCompleteColumn(),
        Rate(),
        progress.TimeRemainingColumn(compact=True),
        progress.TextColumn("left"),
        console=console(stderr=True),
        transient=True,
    )


def rate(per_second: float | None) -> str:
    """Return for example `2.5/s`, or `4.0 s each` where one item takes longer than a second."""
    if not per_second:
        return ""
    return f"{per_second:.1f}/s" if per_second >= 1 else f"{1 / per_second:.1f} s each"
