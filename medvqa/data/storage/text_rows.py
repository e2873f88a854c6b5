"""Rows of text files, one at a time: CSV, TSV and JSON Lines.

A row that cannot be read comes as its `UserError`, so that the caller may skip it.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvqa.config.errors import UserError, about, printable
from medvqa.data.storage.files import check_regular

DELIMITERS = ",;\t|"
MAX_CELL_CHARACTERS = 1 << 26


def delimiter_of(header: str) -> str:
    """Return the delimiter that the line with the names of the columns has most of."""
    return max(DELIMITERS, key=header.count)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these pairs; raise `ValueError` if a key stands in it twice."""
    row = dict(pairs)
    if len(row) < len(pairs):
        repeated = next(k for k in row if sum(k == key for key, _ in pairs) > 1)
        raise ValueError(f"key {repeated!r} stands in it twice")
    return row


def json_object(line: str, parse_constant: Callable[[str], Any] | None = None) -> dict[str, Any]:
    """Return the object of a line; `parse_constant` is that of `json.loads`.

    Raises:
        UserError: If it is none.
    """
    try:
        row = json.loads(line, object_pairs_hook=unique_keys, parse_constant=parse_constant)
    except (ValueError, RecursionError) as error:
        start = line.lstrip()[:1]
        hint = {"{": "", "[": "; write one object per line"}.get(start, "; is it a CSV?")
        raise UserError(f"is no JSON object ({error}){hint}") from error
    if not isinstance(row, dict):
        raise UserError(f"is no JSON object but {type(row).__name__}")
    return row


@dataclass(frozen=True)
class CsvRows:
    """The rows of a CSV or TSV file in UTF-8 whose first line names the columns."""

    path: Path

    def header(self) -> list[str]:
        """Return the names of the columns."""
        with self._opened() as reader:
            return list(reader.fieldnames or [])

    def __iter__(self) -> Iterator[Mapping[str, Any] | UserError]:
        with self._opened() as reader:
            for number, row in enumerate(reader):
                if None in row:
                    yield UserError(f"{self.path}[{number}] has more cells than columns")
                else:
                    yield row

    @contextmanager
    def _opened(self) -> "Iterator[csv.DictReader[str]]":
        csv.field_size_limit(MAX_CELL_CHARACTERS)
        check_regular(self.path)
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                header = file.readline()
                file.seek(0)
                # Strict: a quotation mark that nothing closes would take in the rows after it.
                reader = csv.DictReader(file, delimiter=delimiter_of(header), strict=True)
                names = list(reader.fieldnames or [])
                if repeated := [name for name in names if names.count(name) > 1]:
                    raise UserError(f"{self.path}: column {printable(repeated[0])} stands twice")
                yield reader
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path} is not UTF-8 text; convert it") from error
        except csv.Error as error:
            raise UserError(
                f"{self.path}, before line {reader.line_num + 1}: {error}; is a quotation mark not "
                "closed, or not doubled within a cell?"
            ) from error
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}") from error


@dataclass(frozen=True)
class JsonLines:
    """The rows of a file with one JSON object per line."""

    path: Path

    def __iter__(self) -> Iterator[Mapping[str, Any] | UserError]:
        check_regular(self.path)
        try:
            with self.path.open(encoding="utf-8-sig", newline="\n") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        try:
                            with about(f"{self.path}, line {number}"):
                                row = json_object(line)
                        except UserError as error:
                            yield error
                        else:
                            yield row
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path} is not UTF-8 text; convert it") from error
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}") from error
