"""The record of a small finished grid that the package carries, to see a report before any run.

`python -m tools.pack_example GRID` writes it.
"""

import tarfile
from pathlib import Path

from medvqa.config.machine import make_directory

ARCHIVE = Path(__file__).with_name("example.tar.xz")
TITLE = "Example: six small runs on drawn pictures"


def unpack_example(directory: Path) -> Path:
    """Write the record below the directory and return the grid's directory.

    Raises:
        UserError: If the directory cannot be written.
    """
    grid = directory / "grid"
    make_directory(grid, "another directory")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(grid, filter="data")
    return grid
