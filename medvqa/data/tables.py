"""The data sets that need no code: `tables.yaml`."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml


class Table(NamedTuple):
    """A data set of `tables.yaml`.

    Attributes:
        repository: Its name on the hub; None for files from elsewhere.
        splits: As the hub calls them; any split may be asked for where none are documented.
        columns: What holds which role; common names where it is silent.
        files: The file or pattern of each split, where they have names of their own.
        subsets: Configurations of the hub that together are the set; folders of a local copy.
        archives: Pattern of the ZIP files with the pictures.
        image_root: Folder of the unpacked pictures, below a local copy.
    """

    repository: str | None = None
    splits: tuple[str, ...] = ()
    columns: Mapping[str, Any] | None = None
    files: Mapping[str, str] | None = None
    subsets: tuple[str, ...] = ()
    archives: str | None = None
    image_root: str | None = None


@cache
def tables() -> dict[str, Table]:
    """Return the known tables by the name that `data.name` gives them."""
    text = Path(__file__).with_name("tables.yaml").read_text(encoding="utf-8")
    return {name: Table(**values) for name, values in yaml.safe_load(text).items()}
