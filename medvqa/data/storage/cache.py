"""What takes long to find out about files and pictures, remembered between runs."""

import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from medvqa.config.machine import cache_directory

log = logging.getLogger(__name__)

PATIENCE_S = 10.0  # for another process that is writing
TABLE = """
pragma journal_mode = persist;
pragma synchronous = off;
create table if not exists entries (key text primary key, value blob not null);
"""


class Cache:
    """Values by key in one file; None as a key stands for what must not be remembered.

    Threads and processes may share the file. Where it cannot be read or written, nothing is
    remembered.
    """

    def __init__(self, directory: Path) -> None:
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._path = directory / "cache.sqlite"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                self._path, timeout=PATIENCE_S, check_same_thread=False, isolation_level=None
            )
            self._connection.executescript(TABLE)
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def get(self, key: str | None) -> bytes | None:
        """Return the value of a key, or None."""
        return None if key is None else self._run("select value from entries where key = ?", key)

    def keep(self, key: str | None, value: bytes) -> None:
        """Write a value to the disk."""
        if key is not None:
            self._run("insert or replace into entries values (?, ?)", key, value)

    def _run(self, query: str, *values: str | bytes) -> bytes | None:
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
        advice = "; delete this file" if type(error) is sqlite3.DatabaseError else ""  # damaged
        log.warning("no cache of hashes and indexes: %s: %s%s", self._path, error, advice)
        self.__exit__()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def open_cache() -> Cache:
    """Return the cache of this user."""
    return Cache(cache_directory(os.environ))


def remembered(key: str | None, compute: Callable[[], bytes]) -> bytes:
    """Return the value of a key in this user's cache; it is computed if it is missing."""
    with open_cache() as cache:
        value = cache.get(key)
        if value is None:
            value = compute()
            cache.keep(key, value)
        return value
