"""What takes long to find out about a large file, kept between runs in the hub's assets cache."""

import hashlib
import json
import logging
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from medvqa.config.errors import UserError

log = logging.getLogger(__name__)

Identity = Sequence[str | int]


def file_identity(path: Path) -> Identity:
    """Return what changes when the file does: its place, size and time.

    Raises:
        UserError: If there is no such file.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"cannot read {path}: it is no regular file")
    return (str(path.resolve()), status.st_size, status.st_mtime_ns)


def cache_folder(kind: str) -> Path:
    """Return the folder for one kind of knowledge; `hf cache` and HF_HOME govern where it is."""
    from huggingface_hub import cached_assets_path

    return cached_assets_path("medvqa", namespace=kind)


def read_cached(kind: str, identity: Identity) -> bytes | None:
    """Return what was written for this identity; None if nothing was."""
    try:
        return _place(kind, identity).read_bytes()
    except OSError:
        return None


def write_cached(kind: str, identity: Identity, data: bytes) -> None:
    """Keep the data for this identity; a cache that cannot be written only costs time."""
    try:
        write_whole(_place(kind, identity), data)
    except OSError as error:
        log.warning("cannot remember the %s of %s: %s", kind, identity[0], error)


def write_whole(path: Path, data: bytes) -> None:
    """Write the file completely or not at all, also beside another process that does the same."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(path)


def _place(kind: str, identity: Identity) -> Path:
    digest = hashlib.sha256(json.dumps(list(identity)).encode()).hexdigest()
    return cache_folder(kind) / digest[:32]
