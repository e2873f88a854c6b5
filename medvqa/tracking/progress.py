"""One live line per phase on a terminal, with rate and time left; silence elsewhere."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from medvqa.tracking.terminal import console

if TYPE_CHECKING:
    from rich.progress import Progress, Task

Item = TypeVar("Item")
_displays: "list[Progress]" = []  # the one display of the process, while a phase runs


def track(items: Sequence[Item], *, description: str) -> Iterable[Item]:
    """Iterate over the items with a live line on stderr, if stderr is a terminal.

    A phase inside a phase, such as an evaluation during training, has a line below it.
    """
    return _live(items, description) if sys.stderr.isatty() else items


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
