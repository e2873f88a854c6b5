"""An answers file -> its rows with their places: JSON Lines, a JSON array, CSV or TSV."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from medvqa.config.errors import UserError
from medvqa.data.storage.text_rows import MAX_CELL_CHARACTERS, delimiter_of, unique_keys

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")


class Row(NamedTuple):
    """One row and its place, for messages: `p.csv, line 3`."""

    place: str
    values: Mapping[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Return the file's rows; the suffix .csv or .tsv, or else the content tells the format.

    Raises:
        UserError: Naming file and line, if the file or a row cannot be read.
    """
    if path.is_char_device():  # an endless one would fill the memory; a pipe ends
        raise UserError(f"cannot read {path}: it is a device")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = file.read()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}); convert it") from error
    suffix, start = path.suffix.lower(), text.lstrip()[:1]
    if suffix in (".csv", ".tsv") or (suffix not in JSON_SUFFIXES and start not in ("{", "[", "")):
        return list(_table(path, text))
    if start == "[":
        rows = parsed(text, str(path))
        if not isinstance(rows, list):
            raise UserError(f"{path} is no JSON array of objects")
        return [_object(f"{path}, row {n}", row) for n, row in enumerate(rows, start=1)]
    # A line ends at a line feed only: U+2028 and its like may stand inside a text.
    places = ((f"{path}, line {n}", line) for n, line in enumerate(text.split("\n"), start=1))
    return [_object(place, parsed(line, place)) for place, line in places if line.strip()]


def parsed(text: str, place: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        UserError: Naming the place, if it is no JSON, or an object names a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except RecursionError as error:
        raise UserError(f"{place} is nested too deeply") from error
    except ValueError as error:
        raise UserError(f"{place} is no JSON (cut off?): {error}") from error


def _object(place: str, row: Any) -> Row:
    if not isinstance(row, dict):
        raise UserError(f"{place} is no JSON object")
    return Row(place, row)


def _table(path: Path, text: str) -> Iterator[Row]:
    header = text.partition("\n")[0].strip()
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    content = io.StringIO(text, newline="")
    reader = csv.DictReader(content, delimiter=delimiter_of(header), strict=True)
    try:
        names = list(reader.fieldnames or ())
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"{path}, line 1 names the column {repeated!r} twice")
        for values in reader:
            place = f"{path}, line {reader.line_num}"
            if None in values or None in values.values():
                raise UserError(f"{place} has not as many cells as the header ({header})")
            yield Row(place, values)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num} is no table row: {error}") from error
