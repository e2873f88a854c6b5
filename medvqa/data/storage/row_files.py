"""Rows of one split: parquet, CSV, JSON, JSON Lines, an image folder, or a data set of the hub."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvqa.config.errors import UserError
from medvqa.data.storage.files import check_regular, file_text
from medvqa.data.storage.hub import load_rows
from medvqa.data.storage.json_list import JsonList
from medvqa.data.storage.text_rows import CsvRows, JsonLines

TEXT_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".dcm")


@dataclass(frozen=True)
class TableRows:
    """The rows of one split, read one at a time as often as they are asked for.

    Attributes:
        place: What messages call the table.
        columns: Names of the columns; of the first row, where each row names its own.
        folder: Where the paths of pictures begin.
        rows: Mappings; a `datasets.Dataset` if the table may hold the pictures' bytes.
    """

    place: str
    columns: Sequence[str]
    folder: Path
    rows: Any

    def named(self, number: int) -> str:
        """Return what messages call a row."""
        return f"{self.place}[{number}]"

    def texts(self, columns: Sequence[str]) -> Iterable[Any]:
        """Return the rows with these columns alone, so that no picture is read.

        A row that cannot be read comes as its `UserError`.
        """
        select = getattr(self.rows, "select_columns", None)
        return self.rows if select is None else select(list(columns))  # type: ignore[no-any-return]

    def holds_bytes(self, column: str) -> bool:
        """Return whether a column's cells are encoded pictures, not their paths."""
        feature = getattr(self.rows, "features", {}).get(column)
        inner = getattr(feature, "feature", feature)
        if isinstance(inner, dict):
            return "bytes" in inner
        return type(inner).__name__ == "Image" or "binary" in str(getattr(inner, "dtype", ""))


def open_table(path: Path, split: str, *, pattern: str | None = None) -> TableRows:
    """Return the rows of a split of a local table.

    Args:
        path: A file, or a directory that `find_table` searches.
        split: Names the files; a file that is given itself may hold several splits.
        pattern: The split's files below the directory, in place of the usual names.

    Raises:
        UserError: If nothing is found or a file is no table.
    """
    if not path.exists():
        is_name = len(path.parts) == 2 and not path.is_absolute()
        hint = f"; a data set of the hub is data.repository={path}" if is_name else ""
        raise UserError(f"data.path={path} is not there{hint}")
    files = find_table(path, split, pattern) if path.is_dir() else [path]
    if files[0].suffix == ".parquet":
        # The library keeps the name "all" for itself.
        name = "rows" if split == "all" else split
        rows = load_rows(str(path), files=[str(file) for file in files], split=name)
        return TableRows(f"{path} {split}", rows.column_names, files[0].parent, rows)
    tables = [_open_text(file) for file in files]
    if len(tables) > 1:
        every = [row for table in tables for row in table]
        return TableRows(f"{path} {split}", _columns(every), path, every)
    folder = files[0] if files[0].is_dir() else files[0].parent
    return TableRows(str(files[0]), _columns(tables[0]), folder, tables[0])


def find_table(folder: Path, split: str, pattern: str | None) -> list[Path]:
    """Return the files of a split, of one kind, or the image folder that holds it."""
    if pattern is not None:
        if files := sorted(folder.glob(pattern)):
            return files
        raise UserError(f"data.path={folder} has no {pattern}")
    parquet = [*folder.rglob(f"{split}-*.parquet"), *folder.rglob(f"{split}.parquet")]
    _check_one([*parquet[:1], *(folder / f"{split}{suffix}" for suffix in TEXT_TABLES)])
    if parquet:
        return sorted(parquet)
    named = [folder / f"{split}{suffix}" for suffix in TEXT_TABLES]
    named += [folder / split / f"metadata{suffix}" for suffix in (".csv", ".jsonl")]
    named += [folder / f"metadata{suffix}" for suffix in (".csv", ".jsonl")]
    for path in named:
        if path.is_file():
            return [path]
    if any(path.suffix.lower() in PICTURES for path in (folder / split).rglob("*")):
        return [folder / split]
    tables = sorted(p for p in folder.iterdir() if p.suffix in (*TEXT_TABLES, ".parquet"))
    if len(tables) == 1:
        return tables
    names = ", ".join(sorted(path.name for path in folder.iterdir())[:9]) or "nothing"
    raise UserError(
        f"data.path={folder} holds no table of split {split}: looked for {split}-*.parquet, "
        f"{split}.csv, .tsv, .jsonl, .json, metadata.csv and {split}/ with pictures; found {names}"
    )


def _check_one(candidates: Sequence[Path]) -> None:
    present = [path for path in candidates if path.is_file()]
    if present[1:]:
        names = " and ".join(path.name for path in present)
        raise UserError(f"{present[0].parent} holds {names}; give data.path= the one to read")


def _open_text(path: Path) -> Any:
    if path.is_dir():
        pictures = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES)
        return [
            {"image": str(p.relative_to(path)), "label": p.parent.name.replace("_", " ")}
            for p in pictures
        ]
    if path.suffix in (".csv", ".tsv"):
        return CsvRows(path)
    if path.suffix in (".jsonl", ".ndjson"):
        return JsonLines(path)
    if path.suffix == ".json":
        return _open_json(path)
    raise UserError(
        f"{path} is no table: give .parquet, {', '.join(TEXT_TABLES)} or a directory of such"
    )


def _open_json(path: Path) -> Any:
    """Return the rows of a list, or of an object of rows by name."""
    check_regular(path)
    with path.open("rb") as file:
        start = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if start == b"[":
        return JsonList(path)
    try:
        content = json.loads(file_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    values = list(content.values()) if isinstance(content, dict) else []
    if values and all(isinstance(value, dict) for value in values):
        return values
    lists = [value for value in values if isinstance(value, list)]
    if len(lists) == 1 and all(isinstance(row, dict) for row in lists[0]):
        return lists[0]
    raise UserError(f"{path} is no list of rows")


def _columns(rows: Iterable[Any]) -> list[str]:
    if isinstance(rows, CsvRows):
        return rows.header()
    first = next((row for row in rows if isinstance(row, Mapping)), {})
    return [str(name) for name in first]
