"""A JSON list that is too large for memory: its rows are found once and read one at a time."""

import codecs
import json
import re
from array import array
from pathlib import Path
from typing import BinaryIO

from medvqa.config.errors import UserError
from medvqa.data.image import file_fingerprint
from medvqa.data.storage.cache import remembered
from medvqa.data.storage.files import check_regular
from medvqa.data.storage.text_rows import unique_keys

CHUNK_BYTES = 1 << 22
MAX_ROW_CHARACTERS = 1 << 26  # a row that is broken would otherwise read on to the end of the file
SPACE = re.compile(r"[ \t\r\n]*")


class JsonList:
    """The rows of a file that holds one JSON list; only the places where they begin are kept.

    The places of a file of 650,000 rows are 5 MB. They are remembered between runs.

    Raises:
        UserError: If the file cannot be read or is no complete JSON list in UTF-8, naming the row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts = array("q")
        check_regular(path)
        fingerprint = file_fingerprint(path)
        key = None if fingerprint is None else f"rows {fingerprint}"
        self._starts.frombytes(remembered(key, lambda: row_starts(path).tobytes()))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: int) -> object:
        start, end = self._starts[number], self._starts[number + 1]
        with self.path.open("rb") as file:
            file.seek(start)
            return json.JSONDecoder().raw_decode(file.read(end - start).decode())[0]


def row_starts(path: Path) -> "array[int]":
    """Return the byte at which each row begins, and that of the bracket behind the last."""
    starts = array("q")
    try:
        with path.open("rb") as file:
            window = _Window(path, file)
            if window.next_character() != "[":
                raise UserError(f"{path} is no JSON list of rows")
            window.skip("[")
            while window.next_character() != "]":
                starts.append(window.offset)
                window.skip_value(len(starts) - 1)
                if window.next_character() == ",":
                    window.skip(",")
                    window.next_character()
                elif window.next_character() != "]":
                    raise UserError(f"{path}, row {len(starts) - 1} is not followed by a comma")
            starts.append(window.offset)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return starts


class _Window:
    """The part of the file that is being looked at; `offset` is the byte of its first character."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.offset = 0
        self._file = file
        self._text, self._at = "", 0
        self._scan = json.JSONDecoder(object_pairs_hook=unique_keys).raw_decode
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._read_on()
        if self._text.startswith("\ufeff"):
            self.skip("\ufeff")

    def next_character(self) -> str:
        """Return the next character that is no white space, which is passed over."""
        while True:
            end = SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            self.skip(self._text[self._at : end])
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_on():
                raise UserError(f"{self.path} ends before its list of rows does; fetch it again")

    def skip(self, text: str) -> None:
        """Go on behind this text."""
        self._at += len(text)
        self.offset += len(text.encode())

    def skip_value(self, row: int) -> None:
        """Go on behind the value that begins here."""
        while True:
            try:
                _, end = self._scan(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if len(self._text) - self._at > MAX_ROW_CHARACTERS or not self._read_on():
                    raise UserError(f"{self.path}, row {row} is no JSON: {error}") from error
            else:
                self.skip(self._text[self._at : end])
                return

    def _read_on(self) -> bool:
        chunk = self._file.read(CHUNK_BYTES)
        try:
            more = self._decode(chunk, not chunk)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.path} is not UTF-8 text (after byte {self.offset}); convert it"
            ) from error
        self._text, self._at = self._text[self._at :] + more, 0
        return bool(chunk)
