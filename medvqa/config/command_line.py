"""The parser of one `medvqa` command: grouped options, examples, lines of at most 100 columns."""

import argparse
import shutil
import textwrap
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NoReturn

from medvqa.config.errors import UserError

COLUMNS = 100


class CommandParser(argparse.ArgumentParser):
    """A parser whose mistakes are one line of ours.

    Args:
        main: `main_NAME` of `medvqa NAME`; its docstring describes the command in one sentence.
        examples: Command -> what the command does.
    """

    def __init__(self, main: Callable[..., Any], examples: Mapping[str, str]) -> None:
        width = min(COLUMNS, shutil.get_terminal_size().columns)
        super().__init__(
            prog=f"medvqa {main.__name__.removeprefix('main_')}",
            description=textwrap.fill(main.__doc__ or "", width),
            epilog="examples:\n" + example_lines(examples),
            formatter_class=partial(
                argparse.RawDescriptionHelpFormatter, width=width, max_help_position=30
            ),
        )

    def group(self, title: str) -> Callable[..., Any]:
        """Return the `add_argument` of a new group of options."""
        return self.add_argument_group(title).add_argument

    def error(self, message: str) -> NoReturn:
        """Raise a `UserError`; argparse itself would print the usage and exit."""
        raise UserError(f"{message}; `{self.prog} --help` shows the options and an example")


def example_lines(examples: Mapping[str, str]) -> str:
    """Return one indented line per example, with the explanations in one column."""
    width = max(map(len, examples))
    return "\n".join(f"  {name:<{width}}   {text}".rstrip() for name, text in examples.items())
