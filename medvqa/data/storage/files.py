"""Texts, and images by name, of a data set that comes as files."""

import json
from pathlib import Path
from typing import Any

from medvqa.config.errors import UserError, about
from medvqa.data.example import ImageSource
from medvqa.data.image import ImageFile, read_regular, regular_size
from medvqa.data.storage.archive import ZipImage, open_once, safe_name


def file_text(path: Path) -> str:
    """Return the text of a UTF-8 file, with or without a byte order mark.

    Raises:
        UserError: If it cannot be read, or is in another encoding.
    """
    try:
        with about(f"cannot read {path}"):
            return read_regular(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); convert it") from error


def check_regular(path: Path) -> None:
    """Raise a `UserError` if there is no regular file at the path."""
    with about(f"cannot read {path}"):
        regular_size(path)


def json_rows(path: Path) -> list[Any]:
    """Return the rows of a file that holds one JSON list.

    Raises:
        UserError: If it cannot be read or holds something else.
    """
    try:
        rows = json.loads(file_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    if not isinstance(rows, list):
        raise UserError(f"{path} is no list of rows but {type(rows).__name__}")
    return rows


def named_images(folder: Path) -> dict[str, ImageSource]:
    """Return the files below a folder by their path in it; nothing is read yet.

    Where the folder is absent, the members of the ZIP file of its name, which may begin with the
    folder's name or not.

    Raises:
        UserError: If neither is there, or the ZIP file is broken or leads out of its folder.
    """
    if folder.is_dir():
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): ImageFile(path) for path in files}
    archive = folder.with_name(f"{folder.name}.zip")
    if not archive.is_file():
        raise UserError(f"there is neither {folder} nor {archive.name}; both hold the images")
    members = [name for name in open_once(archive).namelist() if not name.endswith("/")]
    return {
        safe_name(name).removeprefix(f"{folder.name}/"): ZipImage(archive, name) for name in members
    }
