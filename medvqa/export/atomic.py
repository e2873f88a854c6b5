"""A directory that appears whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medvqa.config.errors import UserError
from medvqa.models.trained import EXPORT_FILE
from medvqa.tracking.files import directory_lock


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """Give a hidden sibling to fill; rename it to `target` once all of it is on the disk.

    A process that is killed leaves the sibling, which the next export to the same place removes.
    An earlier export is replaced; anything else in the way is left alone.

    Raises:
        UserError: If `target` is something else than an export, or is being written just now.
    """
    check_target(target)
    partial = target.with_name(f".{target.name}.partial")
    with directory_lock(partial):
        _clear(partial)
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial)
            raise
        for path in (*partial.rglob("*"), partial):
            _sync(path)
        (partial / ".lock").unlink()  # stays held: the lock is the open file's, not the name's
        _put_in_place(partial, target)


def check_target(target: Path) -> None:
    """Raise a `UserError` if something is there that no export has written."""
    is_free = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    if not is_free and not (target / EXPORT_FILE).is_file():
        raise UserError(f"{target} exists and is no earlier export; choose another --out")


def _clear(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()


def _put_in_place(partial: Path, target: Path) -> None:
    """Swap the directories: a kill in between leaves no `target`, never a mixed one."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
