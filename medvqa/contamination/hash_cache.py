"""Hashes of pictures on disk, so that each picture is read and hashed once."""

import logging
import os
import sqlite3
import threading
from pathlib import Path
from typing import Self

from medvqa.config.machine import cache_directory
from medvqa.contamination.picture_hash import VERSION

log = logging.getLogger(__name__)

PATIENCE_S = 10.0  # for another process that is writing
TABLES = """
pragma journal_mode = persist;
pragma synchronous = off;
create table if not exists files (fingerprint text primary key, sha256 blob not null);
create table if not exists hashes (
    sha256 blob, mirrored integer, hashes blob not null, primary key (sha256, mirrored)
);
"""


class HashCache:
    """Hashes by the SHA-256 of the bytes, and a file's SHA-256 by its fingerprint.

    Threads and processes may share the cache. Where it cannot be read or written, all pictures are
    hashed anew.
    """

    def __init__(self, directory: Path) -> None:
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._path = directory / f"pictures-{VERSION}.sqlite"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                self._path, timeout=PATIENCE_S, check_same_thread=False, isolation_level=None
            )
            self._connection.executescript(TABLES)
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def sha256(self, fingerprint: str) -> bytes | None:
        """Return the SHA-256 of the bytes that had this fingerprint."""
        return self._run("select sha256 from files where fingerprint = ?", fingerprint)

    def hashes(self, sha256: bytes, *, mirrored: bool) -> bytes | None:
        """Return the hashes of these bytes; an empty result means a picture without contrast."""
        query = "select hashes from hashes where sha256 = ? and mirrored = ?"
        return self._run(query, sha256, int(mirrored))

    def keep_file(self, fingerprint: str | None, sha256: bytes) -> None:
        """Write the SHA-256 of a file's bytes to the disk, if the file has a fingerprint."""
        if fingerprint is not None:
            self._run("insert or replace into files values (?, ?)", fingerprint, sha256)

    def keep_hashes(self, sha256: bytes, hashes: bytes, *, mirrored: bool) -> None:
        """Write the hashes to the disk."""
        self._run("insert or replace into hashes values (?, ?, ?)", sha256, int(mirrored), hashes)

    def _run(self, query: str, *values: str | bytes | int) -> bytes | None:
        """Return the one value that a query finds."""
        with self._lock:
            if self._connection is None:
                return None
            try:
                row = self._connection.execute(query, values).fetchone()
            except sqlite3.Error as error:
                self._give_up(error)
                return None
        return None if row is None else bytes(row[0])

    def _give_up(self, error: Exception) -> None:
        log.warning("no cache of picture hashes: %s: %s", self._path, error)
        self.__exit__()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def open_cache() -> HashCache:
    """Return the cache of this user."""
    return HashCache(cache_directory(os.environ))
