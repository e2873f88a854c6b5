"""Rows of a data set in the hub's layout, from a local copy or from the hub."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medvqa.example import UserError


def load_rows(
    name: str, directory: Path | None, *, split: str, revision: str | None, columns: Sequence[str]
) -> Iterable[Mapping[str, Any]]:
    """Return the split's rows; images stay encoded: `{"bytes": ..., "path": ...}`.

    Args:
        name: Hub id, used if there is no directory.
        directory: Local copy with `data/<split>-*.parquet`.
        split: As the hub calls it.
        revision: Of the hub's repository.
        columns: That must be there.

    Raises:
        UserError: If nothing is there, or a column is missing; it names the columns found.
    """
    files: list[str] = []
    if directory is not None:
        files = [str(p) for p in sorted(directory.rglob(f"{split}-*.parquet"))]
        if not files:
            raise UserError(
                f"data.path={directory} holds neither the authors' files nor {split}-*.parquet"
            )
    from datasets import Image, disable_progress_bars, load_dataset

    disable_progress_bars()
    try:
        if files:
            rows = load_dataset("parquet", data_files={split: files}, split=split)
        else:
            rows = load_dataset(name, split=split, revision=revision)
    except Exception as error:  # the hub raises a dozen unrelated types
        first = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"cannot load {name} ({first}); without a network give data.path=, a local copy"
        ) from error
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        raise UserError(
            f"{directory or name}: no column {', '.join(missing)}; "
            f"found {', '.join(rows.column_names)}"
        )
    if "image" in columns:
        rows = rows.cast_column("image", Image(decode=False))
    result: Iterable[Mapping[str, Any]] = rows
    return result
