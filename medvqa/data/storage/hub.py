"""Rows and files of a data set in the hub's layout, from a local copy or from the hub."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medvqa.config.errors import UserError


@dataclass(frozen=True)
class RowImage:
    """An image that stays in the data set's file on disk until it is needed."""

    name: str
    rows: Any = field(repr=False, compare=False)
    index: int = 0
    column: str = "image"

    def read(self) -> bytes:
        """Return the encoded image."""
        value = self.rows[self.index][self.column]
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes) or not data:
            raise UserError(f"{self.name} has no image bytes")
        return data


def load_rows(
    name: str,
    directory: Path | None,
    *,
    split: str,
    revision: str | None,
    subset: str | None = None,
) -> Any:
    """Return the split as a `datasets.Dataset` on disk; images stay encoded.

    Args:
        name: Hub id, used if there is no directory.
        directory: Local copy with `<split>-*.parquet` somewhere below it.
        split: As the hub calls it.
        revision: Of the hub's repository.
        subset: The hub's configuration; in a local copy the folder that holds its files.

    Raises:
        UserError: If nothing is there.
    """
    files: list[str] = []
    if directory is not None:
        place = directory / subset if subset and (directory / subset).is_dir() else directory
        files = [str(p) for p in sorted(place.rglob(f"{split}-*.parquet"))]
        if not files:
            raise UserError(f"data.path={directory} holds no {split}-*.parquet of {name}")
    from datasets import Image, disable_progress_bars, load_dataset

    disable_progress_bars()
    try:
        if files:
            rows = load_dataset("parquet", data_files={split: files}, split=split)
        else:
            rows = load_dataset(name, subset, split=split, revision=revision)
    except Exception as error:  # the hub raises a dozen unrelated types
        raise UserError(
            f"cannot load {directory or name} ({first_line(error)})"
            + ("" if directory else "; without a network give data.path=, a local copy")
        ) from error
    for column, feature in rows.features.items():
        if isinstance(feature, Image):
            rows = rows.cast_column(column, Image(decode=False))
    return rows


def hub_file(name: str, directory: Path | None, file: str, *, revision: str | None) -> Path:
    """Return a file of the data set's repository: in the local copy, or fetched from the hub.

    Raises:
        UserError: If it is not there, or the hub cannot be reached.
    """
    if directory is not None:
        if not (directory / file).is_file():
            raise UserError(f"data.path={directory} has no {file}")
        return directory / file
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file, repo_type="dataset", revision=revision))
    except Exception as error:  # the hub raises a dozen unrelated types
        raise UserError(
            f"cannot fetch {file} of {name} ({first_line(error)}); "
            "without a network give data.path=, a local copy"
        ) from error


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its type."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
