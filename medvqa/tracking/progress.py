"""A progress bar on a terminal, and silence elsewhere."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def track(items: Sequence[Item], *, description: str) -> Iterable[Item]:
    """Iterate over the items with a bar on stderr, if stderr is a terminal."""
    if not sys.stderr.isatty():
        return items
    return _bar(items, description)


def _bar(items: Sequence[Item], description: str) -> Iterator[Item]:
    from rich.console import Console
    from rich.progress import track as rich_track

    yield from rich_track(
        items, description=description, console=Console(stderr=True), transient=True
    )
