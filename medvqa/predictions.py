"""Answers kept on the disk by all that they depend on; see docs/prediction_cache.md."""

import hashlib
import json
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, TypeVar

from medvqa.example import UserError
from medvqa.places import cache_directory

log = logging.getLogger(__name__)

AUTO = "auto"
FILE = "answers-1.sqlite"
PATIENCE_S = 10.0  # for another process that is writing
MAX_BYTES = 2**30  # about 3,500 evaluations of VQA-RAD's 2,248 questions
TABLE = """
create table if not exists answers
    (key text primary key, answer blob not null, checksum blob not null)
"""
Result = TypeVar("Result")


class Answer(NamedTuple):
    """One generated answer; see `medvqa.generation.Answers`."""

    text: str
    is_cut: bool
    num_tokens: int


class PredictionCache:
    """Processes may share it; without it all is computed anew, never wrongly.

    The first answer that was kept for a key stays. Each carries a checksum; a damaged one is
    forgotten, and a damaged file set aside. Above `MAX_BYTES` the oldest quarter makes room.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def find(self, keys: Iterable[str]) -> dict[str, Answer]:
        """Return what is known, by key."""

        def read(connection: sqlite3.Connection) -> dict[str, Answer]:
            found, damaged = {}, []
            for key in keys:
                row = connection.execute(
                    "select answer, checksum from answers where key = ?", (key,)
                ).fetchone()
                if row is None:
                    continue
                if _checksum(key, row[0]) == row[1]:
                    found[key] = Answer(*json.loads(row[0]))
                else:
                    damaged.append((key,))
            if damaged:
                log.warning("%d cached answers are damaged and computed anew", len(damaged))
                connection.executemany("delete from answers where key = ?", damaged)
            return found

        return self._with_connection(read, otherwise={})

    def keep(self, answers: Mapping[str, Answer]) -> None:
        """Keep answers; one that another process kept meanwhile stays."""

        def write(connection: sqlite3.Connection) -> None:
            rows = [(key, json.dumps(answer).encode()) for key, answer in answers.items()]
            connection.executemany(
                "insert or ignore into answers values (?, ?, ?)",
                [(key, answer, _checksum(key, answer)) for key, answer in rows],
            )
            _make_room(connection)

        self._with_connection(write, otherwise=None)

    def _with_connection(
        self, work: Callable[[sqlite3.Connection], Result], *, otherwise: Result
    ) -> Result:
        """Do the work in one transaction; say it and go on if the disk will not have it."""
        path = self.directory / FILE
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            with closing(sqlite3.connect(path, timeout=PATIENCE_S)) as connection, connection:
                connection.execute(TABLE)
                return work(connection)
        except (OSError, sqlite3.OperationalError) as error:
            log.warning("no prediction cache: %s: %s", path, error)
        except sqlite3.DatabaseError as error:
            aside = path.with_suffix(".damaged")
            path.replace(aside)
            log.warning("the prediction cache is damaged (%s): moved to %s", error, aside)
        return otherwise


def _checksum(key: str, answer: bytes) -> bytes:
    return hashlib.sha256(key.encode() + bytes(answer)).digest()[:8]


def _make_room(connection: sqlite3.Connection) -> None:
    pages, free, size = (
        int(connection.execute(f"pragma {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    if (pages - free) * size > MAX_BYTES:
        connection.execute(
            "delete from answers where rowid in "
            "(select rowid from answers order by rowid limit (select count(*) / 4 from answers))"
        )


def prediction_cache(place: str | None) -> PredictionCache | None:
    """Return the cache that `evaluation.cache` names; None where it is switched off."""
    if place is None:
        return None
    directory = cache_directory(os.environ) / "predictions" if place == AUTO else Path(place)
    return PredictionCache(directory.expanduser().absolute())


def check_place(place: str | None) -> None:
    """Raise a `UserError` if a directory that the user named cannot be written."""
    if place in (None, AUTO):
        return
    assert place is not None
    directory = Path(place).expanduser()
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UserError(f"evaluation.cache={place} cannot be made: {error.strerror}") from error
    if not os.access(directory, os.W_OK):
        raise UserError(f"evaluation.cache={place} cannot be written; name another, or null")
