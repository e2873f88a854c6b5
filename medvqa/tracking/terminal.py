"""What a command prints: tables in which the user's text stays as it is."""

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

LOG_WIDTH = 180  # columns where the output is no terminal
MAX_CELL = 300  # characters; the files hold longer messages whole


def console(*, stderr: bool = False) -> "Console":
    """Return a console that prints `[q_proj]` and `:x:` literally, without markup or emoji."""
    from rich.console import Console

    result = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not result.is_terminal:
        result.width = LOG_WIDTH
    return result


def plain_text(*parts: "RenderableType") -> str:
    """Return tables as `console` prints them where the output is no terminal."""
    return _recorded(parts).export_text().rstrip()


def html_text(*parts: "RenderableType") -> str:
    """Return the same for a notebook, with lines that are not folded."""
    style = "white-space: pre; overflow-x: auto; line-height: normal; font-family: monospace"
    form = f'<pre style="{style}">{{code}}</pre>'
    return _recorded(parts).export_html(inline_styles=True, code_format=form)


def _recorded(parts: "Sequence[RenderableType]") -> "Console":
    from rich.console import Console

    result = Console(
        record=True, width=LOG_WIDTH, file=io.StringIO(), markup=False, emoji=False,
        highlight=False, force_jupyter=False,
    )  # fmt: skip
    result.print(*parts, sep="\n")
    return result


def table(
    title: str, columns: Sequence[str], rows: "Iterable[Sequence[str | Text]]", **options: Any
) -> "Table":
    """Return a table that folds long cells, and cuts messages that would fill the screen."""
    from rich.table import Table

    result = Table(title=title, title_justify="left", **options)
    for column in columns:
        result.add_column(column, overflow="fold")
    for row in rows:
        result.add_row(*(cell[:MAX_CELL] for cell in row))
    return result
