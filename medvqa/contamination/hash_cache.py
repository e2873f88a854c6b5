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
WRITE_EVERY = 500
TABLES = """
create table if not exists files (fingerprint text primary key, sha256 blob not null);
create table if not exists hashes (
    sha256 blob, mirrored integer, hashes blob not null, primary key (sha256, mirrored)
);
"""


class HashCache:
    """Threads and processes may share it; without it all is hashed anew, never wrongly.

    Hashes are kept by the SHA-256 of the bytes. A file's SHA-256 is kept by its fingerprint, which
    changes whenever the file does.
    """

    def __init__(self, directory: Path) -> None:
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._path = directory / f"pictures-{VERSION}.sqlite"
        self._num_unwritten = 0
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                self._path, timeout=PATIENCE_S, check_same_thread=False
            )
            self._connection.executescript(TABLES)
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def sha256(self, fingerprint: str) -> bytes | None:
        """Return the SHA-256 of the bytes that had this fingerprint."""
        return self._one("select sha256 from files where fingerprint = ?", fingerprint)

    def hashes(self, sha256: bytes, *, mirrored: bool) -> bytes | None:
        """Return the hashes of these bytes; an empty result means a picture without contrast."""
        query = "select hashes from hashes where sha256 = ? and mirrored = ?"
        return self._one(query, sha256, int(mirrored))

    def keep(
        self, fingerprint: str | None, sha256: bytes, hashes: bytes, *, mirrored: bool
    ) -> None:
        """Remember both; the disk has them at the latest when the cache is closed."""
        with self._lock:
            if self._connection is None:
                return
            try:
                if fingerprint is not None:
                    row: tuple[str | bytes | int, ...] = (fingerprint, sha256)
                    self._connection.execute("insert or replace into files values (?, ?)", row)
                row = (sha256, int(mirrored), hashes)
                self._connection.execute("insert or replace into hashes values (?, ?, ?)", row)
                self._num_unwritten += 1
                if self._num_unwritten >= WRITE_EVERY:
                    self._connection.commit()
                    self._num_unwritten = 0
            except sqlite3.Error as error:
                self._give_up(error)

    def _one(self, query: str, *values: str | bytes | int) -> bytes | None:
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
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._connection is None:
                return
            try:
                self._connection.commit()
            except sqlite3.Error as error:
                self._give_up(error)
                return
            self._connection.close()
            self._connection = None


def open_cache() -> HashCache:
    """Return the cache of this user."""
    return HashCache(cache_directory(os.environ))
