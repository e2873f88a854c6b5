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
from typing import NamedTuple

from medvqa.config.errors import UserError
from medvqa.data.example import ImageSource
from medvqa.data.image import ImageFile, file_fingerprint
from medvqa.data.prefetch import ahead
from medvqa.data.storage.archive import ZipImage, open_archive
from medvqa.data.storage.cache import remembered

log = logging.getLogger(__name__)

FETCHING_THREADS = 8  # one per archive


class Member(NamedTuple):
    """A member of an archive, and the bytes that it takes there."""

    name: str
    num_bytes: int


@dataclass(frozen=True)
class Archive:
    """A ZIP file on disk; `HubArchive` is one on the hub.

    Attributes:
        label: Its path, or its name on the hub.
        num_bytes: Its size.
        fingerprint: Changes when its content does; None if unknown.
    """

    label: str
    num_bytes: int
    fingerprint: str | None

    def open(self) -> zipfile.ZipFile:
        """Open it to read its directory; raise `UserError` if it is cut off or unsafe."""
        return open_archive(self.label, self.label)

    def fetch(self, members: Mapping[str, Member]) -> dict[str, ImageSource]:
        """Return these images by file name, to be read in place or already fetched."""
        return {name: ZipImage(Path(self.label), member.name) for name, member in members.items()}

    def num_fetched_bytes(self, members: Mapping[str, Member]) -> int:
        """Return how much `fetch` would move over the network."""
        return 0


class ArchiveSet:
    """Images by file name in a set of archives, or in the folder where they were unpacked.

    Attributes:
        archives: Looked through in this order; the first that holds a name counts.
        folder: Preferred to the archives where it holds a name.
    """

    def __init__(self, archives: Sequence[Archive], folder: Path | None = None) -> None:
        self.archives = archives
        self.folder = folder
        self._broken: dict[str, str] = {}

    def fetch(self, names: Collection[str]) -> dict[str, ImageSource]:
        """Return the images that are there, by file name; say how much is moved before it is."""
        images: dict[str, ImageSource] = {}
        if self.folder is not None and self.folder.is_dir():
            paths = {name: self.folder / name for name in names}
            images = {name: ImageFile(path) for name, path in paths.items() if path.is_file()}
        if not (packed := set(names) - images.keys()):
            return images
        members = self._find(packed)
        needed = {archive.label: archive for archive in self.archives if archive.label in members}
        num_bytes = sum(
            archive.num_fetched_bytes(members[label]) for label, archive in needed.items()
        )
        size = f"{num_bytes / 1e9:.2f} of {sum(a.num_bytes for a in self.archives) / 1e9:.2f} GB"
        log.info(
            "%s images in %d of %d archives; %s",
            f"{sum(map(len, members.values())):,}",
            len(needed),
            len(self.archives),
            f"{size} will be fetched" if num_bytes else "nothing is fetched: read in place",
        )
        fetched = ahead(
            lambda label: needed[label].fetch(members[label]),
            list(needed),
            num_threads=FETCHING_THREADS if num_bytes else 0,
        )
        for part in fetched:
            images |= part
        return images

    def missing(self, name: str) -> UserError:
        """Return the error for an image that `fetch` did not return."""
        if not self.archives:
            return UserError(f"image {name} is not in {self.folder}, and no archive lies beside it")
        labels = [PurePosixPath(archive.label).name for archive in self.archives]
        places = ", ".join(labels[:3]) + (f", ... {labels[-1]}" if len(labels) > 3 else "")
        broken = "".join(f"; {reason}" for reason in self._broken.values())
        return UserError(f"image {name} is in none of {len(labels)} archives ({places}){broken}")

    def _find(self, names: set[str]) -> dict[str, dict[str, Member]]:
        """Return the members of each archive that hold one of the names."""
        members_of: dict[str, dict[str, Member]] = defaultdict(dict)
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
                members_of[archive.label][name] = members[name]
            names = names - members.keys()
        return members_of


def _members(archive: Archive) -> dict[str, Member]:
    """Return the members by file name, as `unzip -j` would unpack them."""

    def listed() -> bytes:
        with archive.open() as opened:
            members = {
                PurePosixPath(info.filename).name: (info.filename, info.compress_size)
                for info in opened.infolist()
                if not info.is_dir()
            }
        return json.dumps(members).encode()

    key = None if archive.fingerprint is None else f"members {archive.fingerprint}"
    members = json.loads(remembered(key, listed))
    return {name: Member(*member) for name, member in members.items()}


def local_archives(directory: Path, pattern: str) -> list[Archive]:
    """Return the archives of a local copy, by number."""
    paths = sorted(directory.glob(pattern), key=lambda path: by_number(path.name))
    return [Archive(str(path), path.stat().st_size, file_fingerprint(path)) for path in paths]


def by_number(name: str) -> tuple[list[int], str]:
    """Return what sorts `images_9.zip` before `images_10.zip`."""
    return ([int(digits) for digits in re.findall(r"\d+", name)], name)
