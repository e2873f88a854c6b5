"""Rows and files of a data set in the hub's layout, from a local copy or from the hub."""

import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medvqa.config.errors import UserError, as_user_error

SHARD = re.compile(r"(?P<start>.*)-(?P<number>\d+)-of-(?P<total>\d+)(?P<end>\.\w+)")
NO_NETWORK = "; without a network give data.path=, a local copy"


@dataclass(frozen=True)
class RowImage:
    """An image that stays in the data set's file on disk until it is needed.

    Attributes:
        item: Place of the image in a cell that is a list.
    """

    name: str
    rows: Any = field(repr=False, compare=False)
    index: int = 0
    column: str = "image"
    item: int | None = None

    def read(self) -> bytes:
        """Return the encoded image."""
        value = self.rows[self.index][self.column]
        if self.item is not None:
            value = value[self.item]
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes) or not data:
            raise UserError(f"{self.name} has no image bytes")
        return data


def load_rows(
    name: str,
    *,
    split: str,
    files: Sequence[str] = (),
    revision: str | None = None,
    subset: str | None = None,
) -> Any:
    """Return the split as a `datasets.Dataset` on disk; images stay encoded.

    Args:
        name: Hub id; of local files, what messages call them.
        split: As the hub calls it.
        files: Local parquet files, in place of the hub's.
        revision: Of the hub's repository.
        subset: The hub's configuration.

    Raises:
        UserError: If nothing is there or a file is broken.
    """
    from datasets import Image, disable_progress_bars, load_dataset

    if not sys.stderr.isatty():  # else downloading shows its own line
        disable_progress_bars()
    check_shards(files)
    with as_user_error(f"cannot load {name}", "; fetch it again" if files else NO_NETWORK):
        if files:
            rows = load_dataset("parquet", data_files={split: list(files)}, split=split)
        else:
            rows = load_dataset(name, subset, split=split, revision=revision)
    for column, feature in rows.features.items():
        if isinstance(feature, Image):
            rows = rows.cast_column(column, Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), Image):
            rows = rows.cast_column(column, type(feature)(Image(decode=False)))
    return rows


def check_shards(files: Sequence[str]) -> None:
    """Raise a `UserError` if a file such as `train-00001-of-00003.parquet` lacks its siblings."""
    groups: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    for file in files:
        if match := SHARD.fullmatch(file):
            groups[match["start"], match["total"], match["end"]].add(int(match["number"]))
    for (start, total, end), numbers in groups.items():
        missing = sorted({*range(int(total))} - numbers)
        if missing:
            name = f"{start}-{missing[0]:0{len(total)}d}-of-{total}{end}"
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            raise UserError(f"{name}{more} of {int(total)} files is not there; fetch all of them")


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

    with as_user_error(f"cannot fetch {file} of {name}", NO_NETWORK):
        return Path(hf_hub_download(name, file, repo_type="dataset", revision=revision))
