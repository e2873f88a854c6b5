"""Images that are spread over several ZIP files: in a local copy, or on the hub.

Which archive holds an image is read from the archives' directories (at the hub by range requests,
about 4 MB each) and remembered. Only what is needed is then opened: a local archive is read in
place; of an archive on the hub the needed members are fetched one by one, or the whole file where
they are more than a quarter of it.
"""

import json
import logging
import re
import zipfile
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

from medvqa.ahead import ahead
from medvqa.data.archive import ZipImage, check_names, checked_archive
from medvqa.data.cache import (
    Identity,
    cache_folder,
    file_identity,
    read_cached,
    write_cached,
    write_whole,
)
from medvqa.data.hub import first_line, hub_file
from medvqa.example import ImageSource, UserError
from medvqa.image import ImageFile

log = logging.getLogger(__name__)

WHOLE_ARCHIVE_FRACTION = 0.25
FETCHING_THREADS = 8  # one an archive
BLOCK_BYTES = 1 << 16  # of a range request: most images of a paper's figures fit


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

    def num_fetched_bytes(self, members: Collection[Member]) -> int:
        """Return how much `fetch` moves over the network."""


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
            archive.num_fetched_bytes(found[label].values()) for label, archive in needed.items()
        )
        log.info(
            "%s images in %d of %d archives; %.2f of %.2f GB will be fetched",
            f"{sum(map(len, found.values())):,}",
            len(needed),
            len(self.archives),
            num_bytes / 1e9,
            sum(archive.num_bytes for archive in self.archives) / 1e9,
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

    def num_fetched_bytes(self, members: Collection[Member]) -> int:
        """Nothing is moved."""
        return 0


@dataclass(frozen=True)
class HubArchive:
    """An archive of a data set's repository on the hub.

    Attributes:
        etag: Changes with its content.
    """

    repository: str
    revision: str | None
    file: str
    num_bytes: int
    etag: str

    @property
    def label(self) -> str:
        """Repository and file."""
        return f"{self.repository}/{self.file}"

    def identity(self) -> Identity:
        """Return repository, file and etag."""
        return (self.repository, self.file, self.etag)

    def open(self) -> zipfile.ZipFile:
        """Open it through range requests, its members' names checked."""
        try:
            archive = zipfile.ZipFile(self._remote_file("none"))
        except Exception as error:  # the hub raises a dozen unrelated types
            raise UserError(f"cannot read {self.label} ({first_line(error)})") from error
        check_names(archive, self.label)
        return archive

    def fetch(self, members: Mapping[str, Member]) -> dict[str, ImageSource]:
        """Fetch the whole archive or these members, whichever is less work."""
        if self._is_fetched_whole(members.values()):
            path = hub_file(self.repository, None, self.file, revision=self.revision)
            return LocalArchive(path).fetch(members)
        folder = cache_folder(self.repository) / f"{Path(self.file).stem}-{self.etag[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        lacking = {name: m for name, m in members.items() if not (folder / name).is_file()}
        if lacking:
            self._fetch_members(lacking, folder)
        return {name: ImageFile(folder / name) for name in members}

    def num_fetched_bytes(self, members: Collection[Member]) -> int:
        """Return the archive's size, or the members'."""
        if self._is_fetched_whole(members):
            return self.num_bytes
        return sum(member.num_bytes for member in members)

    def _is_fetched_whole(self, members: Collection[Member]) -> bool:
        return sum(m.num_bytes for m in members) > WHOLE_ARCHIVE_FRACTION * self.num_bytes

    def _fetch_members(self, members: Mapping[str, Member], folder: Path) -> None:
        try:
            with zipfile.ZipFile(self._remote_file("readahead")) as archive:
                # In the order of the archive, so that a block often holds the next image too.
                infos = {name: archive.getinfo(member.name) for name, member in members.items()}
                for name in sorted(infos, key=lambda name: infos[name].header_offset):
                    write_whole(folder / name, archive.read(infos[name]))
        except Exception as error:  # the hub raises a dozen unrelated types
            raise UserError(
                f"cannot fetch images of {self.label} ({first_line(error)}); the same command "
                "goes on with what is there"
            ) from error

    def _remote_file(self, cache_type: str) -> Any:
        from huggingface_hub import HfFileSystem

        path = f"datasets/{self.repository}/{self.file}"
        return HfFileSystem().open(
            path, "rb", revision=self.revision, block_size=BLOCK_BYTES, cache_type=cache_type
        )


def local_archives(directory: Path, pattern: str) -> list[Archive]:
    """Return the archives of a local copy, by number."""
    return [LocalArchive(path) for path in sorted(directory.glob(pattern), key=_numbers)]


def hub_archives(repository: str, revision: str | None, pattern: str) -> list[Archive]:
    """Return the archives of a repository on the hub, by number.

    Raises:
        UserError: If the hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    try:
        tree = list(HfApi().list_repo_tree(repository, repo_type="dataset", revision=revision))
    except Exception as error:  # the hub raises a dozen unrelated types
        raise UserError(
            f"cannot list {repository} ({first_line(error)}); "
            "without a network give data.path=, a local copy"
        ) from error
    files = [entry for entry in tree if isinstance(entry, RepoFile)]
    matching = [file for file in files if PurePosixPath(file.path).match(pattern)]
    return [
        HubArchive(
            repository,
            revision,
            file.path,
            file.size,
            file.lfs.sha256 if file.lfs else file.blob_id,
        )
        for file in sorted(matching, key=lambda file: _numbers(Path(file.path)))
    ]


def _numbers(path: Path) -> tuple[list[int], str]:
    return ([int(digits) for digits in re.findall(r"\d+", path.name)], path.name)
