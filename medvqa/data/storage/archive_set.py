"""Images that are spread over several ZIP files: in a local copy, or on the hub.

Which archive holds an image is read from the archives' directories and remembered. Only those that
hold a needed image are then opened, and read in place.
"""

import json
import logging
import re
import zipfile
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

from medvqa.config.errors import UserError
from medvqa.data.example import ImageSource
from medvqa.data.prefetch import ahead
from medvqa.data.storage.archive import ZipImage, checked_archive
from medvqa.data.storage.cache import Identity, file_identity, read_cached, write_cached

log = logging.getLogger(__name__)

FETCHING_THREADS = 8  # one an archive


class Member(NamedTuple):
    """A member of an archive, and the bytes that it takes there."""

    name: str
    num_bytes: int


class Archive(Protocol):
    """One of the archives."""

    @property
    def label(self) -> str:
        """Its name in messages."""

    @property
    def num_bytes(self) -> int:
        """Its size."""

    def identity(self) -> Identity:
        """Return what changes when its content does."""

    def open(self) -> zipfile.ZipFile:
        """Open it to read its directory; raise `UserError` if it is cut off or unsafe."""

    def fetch(self, members: Mapping[str, Member]) -> dict[str, ImageSource]:
        """Return these images by file name, to be read in place or already fetched."""

    def num_fetched_bytes(self, members: Mapping[str, Member]) -> int:
        """Return how much `fetch` would move over the network."""


class ArchiveSet:
    """Images by file name in a set of archives.

    Attributes:
        archives: Looked through in this order; the first that holds a name counts.
    """

    def __init__(self, archives: Sequence[Archive]) -> None:
        self.archives = archives
        self._broken: dict[str, str] = {}

    def fetch(self, names: Collection[str]) -> dict[str, ImageSource]:
        """Return the images that are there, by file name; say how much is moved before it is."""
        found = self._find(set(names))
        needed = {archive.label: archive for archive in self.archives if archive.label in found}
        num_bytes = sum(
            archive.num_fetched_bytes(found[label]) for label, archive in needed.items()
        )
        size = f"{num_bytes / 1e9:.2f} of {sum(a.num_bytes for a in self.archives) / 1e9:.2f} GB"
        log.info(
            "%s images in %d of %d archives; %s",
            f"{sum(map(len, found.values())):,}",
            len(needed),
            len(self.archives),
            f"{size} will be fetched" if num_bytes else "nothing is fetched: read in place",
        )
        images: dict[str, ImageSource] = {}
        fetched = ahead(
            lambda label: needed[label].fetch(found[label]),
            list(needed),
            num_threads=FETCHING_THREADS if num_bytes else 0,
        )
        for part in fetched:
            images |= part
        return images

    def missing(self, name: str) -> UserError:
        """Return the error for an image that `fetch` did not return."""
        labels = [PurePosixPath(archive.label).name for archive in self.archives]
        places = ", ".join(labels[:3]) + (f", ... {labels[-1]}" if len(labels) > 3 else "")
        broken = "".join(f"; {reason}" for reason in self._broken.values())
        return UserError(f"image {name} is in none of {len(labels)} archives ({places}){broken}")

    def _find(self, names: set[str]) -> dict[str, dict[str, Member]]:
        """Return the members of each archive that hold one of the names."""
        found: dict[str, dict[str, Member]] = defaultdict(dict)
        for archive in self.archives:
            if not names:
                break
            try:
                members = _members(archive)
            except UserError as error:
                # Another archive may hold all that is needed; if not, `missing` says this.
                if archive.label not in self._broken:
                    log.warning("%s", error)
                self._broken[archive.label] = str(error)
                continue
            for name in names & members.keys():
                found[archive.label][name] = members[name]
            names = names - members.keys()
        return found


def _members(archive: Archive) -> dict[str, Member]:
    """Return the members by file name, as `unzip -j` would unpack them."""
    identity = archive.identity()
    known = read_cached("members", identity)
    if known is not None:
        return {name: Member(*member) for name, member in json.loads(known).items()}
    with archive.open() as opened:
        members = {
            PurePosixPath(info.filename).name: Member(info.filename, info.compress_size)
            for info in opened.infolist()
            if not info.is_dir()
        }
    write_cached("members", identity, json.dumps(members).encode())
    return members


@dataclass(frozen=True)
class LocalArchive:
    """An archive of a local copy; nothing is ever unpacked."""

    path: Path

    @property
    def label(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return self.path.stat().st_size

    def identity(self) -> Identity:
        """Return path, size and time."""
        return file_identity(self.path)

    def open(self) -> zipfile.ZipFile:
        """Open it, its members' names checked."""
        return checked_archive(self.path)

    def fetch(self, members: Mapping[str, Member]) -> dict[str, ImageSource]:
        """Return the images where they lie."""
        return {name: ZipImage(self.path, member.name) for name, member in members.items()}

    def num_fetched_bytes(self, members: Mapping[str, Member]) -> int:
        """Nothing is moved."""
        return 0


def local_archives(directory: Path, pattern: str) -> list[Archive]:
    """Return the archives of a local copy, by number."""
    return [
        LocalArchive(path)
        for path in sorted(directory.glob(pattern), key=lambda path: by_number(path.name))
    ]


def by_number(name: str) -> tuple[list[int], str]:
    """Return what sorts `images_9.zip` before `images_10.zip`."""
    return ([int(digits) for digits in re.findall(r"\d+", name)], name)
