"""ZIP files: checked, opened once, and read member by member without being unpacked."""

import lzma
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from medvqa.config.errors import UserError, about, printable
from medvqa.data.image import MAX_BYTES, file_fingerprint


def safe_name(name: str) -> str:
    """Return the name if it stays inside its folder.

    Raises:
        UserError: If it is absolute or climbs out with `..`.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1]):
        raise UserError(f"image name {name!r} leads out of the data set's folder")
    return str(path)


@dataclass(frozen=True)
class ZipImage:
    """One member of a ZIP file, read when it is needed."""

    archive: Path
    member: str

    @property
    def name(self) -> str:
        """Archive and member."""
        return f"{self.archive}:{self.member}"

    def read(self) -> bytes:
        """Return the member's bytes."""
        name = printable(self.name)
        try:
            with open_once(self.archive).open(self.member) as file:
                data = file.read(MAX_BYTES + 1)
        except KeyError as error:
            raise UserError(f"there is no {name}") from error
        except (NotImplementedError, RuntimeError) as error:  # Deflate64; encrypted
            raise UserError(
                f"cannot read image {name}: {error}; unpack the archive and pack it again "
                "with plain Deflate and no password"
            ) from error
        except (OSError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
            raise UserError(f"cannot read image {name}: {error}") from error
        if len(data) > MAX_BYTES:
            raise UserError(f"image {name} has more than {MAX_BYTES:,} bytes")
        return data

    def fingerprint(self) -> str | None:
        """Return what changes with the archive, and the member."""
        archive = file_fingerprint(self.archive)
        return None if archive is None else f"{archive}:{self.member}"


@lru_cache(maxsize=32)
def open_once(path: Path) -> zipfile.ZipFile:
    """Return the archive, which stays open; see `open_archive`."""
    return open_archive(path, str(path))


def open_archive(file: Any, label: str) -> zipfile.ZipFile:
    """Open an archive and check its members' names.

    Args:
        file: A path, or an open file.
        label: Its name in messages.

    Raises:
        UserError: If it is cut off, no ZIP file, or a member's name leads out of the folder.
    """
    try:
        archive = zipfile.ZipFile(file)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise UserError(f"{label} is no complete ZIP file ({error}); fetch it again") from error
    with about(label):
        for name in archive.namelist():
            safe_name(name)
    return archive
