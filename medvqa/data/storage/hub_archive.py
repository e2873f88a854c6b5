"""ZIP files of a data set's repository on the hub, of which only what is needed is fetched.

An archive's directory is read by range requests (some 4 MB of 3 GB). The members that are needed
are fetched one by one and stay on disk. If they are more than a quarter of the file, the whole file
is fetched.
"""

import os
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from medvqa.config.errors import as_user_error
from medvqa.data.example import ImageSource
from medvqa.data.image import ImageFile
from medvqa.data.storage.archive import ZipImage, open_archive
from medvqa.data.storage.archive_set import Archive, Member, by_number
from medvqa.data.storage.hub import NO_NETWORK, hub_file

WHOLE_ARCHIVE_FRACTION = 0.25
BLOCK_BYTES = 1 << 16  # of a range request: most figures of a paper fit


@dataclass(frozen=True)
class HubArchive(Archive):
    """An archive of a data set's repository on the hub; its label is repository and file."""

    repository: str
    file: str
    revision: str | None
    content: str  # its hash on the hub

    def open(self) -> zipfile.ZipFile:
        """Open it through range requests, its members' names checked."""
        with as_user_error(f"cannot read {self.label}"):
            return open_archive(self._remote_file("none"), self.label)

    def fetch(self, members: Mapping[str, Member]) -> dict[str, ImageSource]:
        """Fetch the whole archive or these members, whichever is less work."""
        if self._is_fetched_whole(members.values()):
            path = hub_file(self.repository, None, self.file, revision=self.revision)
            return {name: ZipImage(path, member.name) for name, member in members.items()}
        self._folder.mkdir(parents=True, exist_ok=True)
        if lacking := self._lacking(members):
            self._fetch_members(lacking)
        return {name: ImageFile(self._folder / name) for name in members}

    def num_fetched_bytes(self, members: Mapping[str, Member]) -> int:
        """Return the archive's size, or that of the members that are not there yet."""
        if self._is_fetched_whole(members.values()):
            return self.num_bytes
        return sum(member.num_bytes for member in self._lacking(members).values())

    def _lacking(self, members: Mapping[str, Member]) -> dict[str, Member]:
        return {name: m for name, m in members.items() if not (self._folder / name).is_file()}

    @property
    def _folder(self) -> Path:
        from huggingface_hub import cached_assets_path

        folder = cached_assets_path("medvqa", namespace=self.repository)
        return folder / f"{Path(self.file).stem}-{self.content[:12]}"

    def _is_fetched_whole(self, members: Collection[Member]) -> bool:
        return sum(m.num_bytes for m in members) > WHOLE_ARCHIVE_FRACTION * self.num_bytes

    def _fetch_members(self, members: Mapping[str, Member]) -> None:
        advice = "; the same command goes on with what is there"
        with (
            as_user_error(f"cannot fetch images of {self.label}", advice),
            zipfile.ZipFile(self._remote_file("readahead")) as archive,
        ):
            # In the order of the archive, so that a block often holds the next image too.
            infos = {name: archive.getinfo(member.name) for name, member in members.items()}
            for name in sorted(infos, key=lambda name: infos[name].header_offset):
                _write_whole(self._folder / name, archive.read(infos[name]))

    def _remote_file(self, cache_type: str) -> Any:
        from huggingface_hub import HfFileSystem

        path = f"datasets/{self.repository}/{self.file}"
        return HfFileSystem().open(
            path, "rb", revision=self.revision, block_size=BLOCK_BYTES, cache_type=cache_type
        )


def _write_whole(path: Path, data: bytes) -> None:
    """Write the file completely or not at all, also beside another process that does the same."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(path)


def hub_archives(repository: str, revision: str | None, pattern: str) -> list[Archive]:
    """Return the archives of a repository on the hub, by number.

    Raises:
        UserError: If the hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with as_user_error(f"cannot list {repository}", NO_NETWORK):
        tree = list(HfApi().list_repo_tree(repository, repo_type="dataset", revision=revision))
    files = [e for e in tree if isinstance(e, RepoFile) and PurePosixPath(e.path).match(pattern)]
    return [
        HubArchive(
            label=f"{repository}/{file.path}",
            num_bytes=file.size,
            fingerprint=f"{repository} {file.path} {content}",
            repository=repository,
            file=file.path,
            revision=revision,
            content=content,
        )
        for file in sorted(files, key=lambda file: by_number(file.path))
        for content in [file.lfs.sha256 if file.lfs else file.blob_id]
    ]
