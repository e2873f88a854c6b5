"""References to images, as agents send them -> bytes; local files only from below allowed roots."""

import base64
import binascii
import errno
import os
import re
import stat
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from medvqa.config.errors import printable
from medvqa.serve.errors import ErrorKind, ToolError

MAX_ENTRIES = 256  # of the list, empty references included
MAX_SHOWN_CHARS = 80
MAX_PATH_CHARS = 4096
EMPTY_REFERENCES = ("", "none", "null")
DATA_URL = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)
NOT_BELOW = "is not below an allowed root (allowed_roots in the tool's config)"
NO_FETCHING = "is a URL, and nothing is fetched: give a file path or a data:image/...;base64, URL"
CONTROL = ("Cc", "Cs")  # and halves of surrogate pairs, which no path can hold
MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)

Images = Sequence[str | None] | str | None


def references(images: Images) -> tuple[list[str], int]:
    """Return the references, and the number of empty ones that were left out.

    Agents send `"None"`, `"null"`, empty strings and, for one image, the string alone.

    Raises:
        ToolError: If it is no list of strings.
    """
    entries = listed(images)
    if entries is None:
        return [], 0
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise ToolError(ErrorKind.image_not_allowed, "images must be a list of strings")
    if len(entries) > MAX_ENTRIES:
        raise ToolError(ErrorKind.too_many_images, f"the list has {len(entries)} entries")
    stripped = [entry.strip() for entry in entries]
    named = [entry for entry in stripped if entry.lower() not in EMPTY_REFERENCES]
    return named, len(stripped) - len(named)


def listed(images: Any) -> Any:
    """Return a list of strings where an agent sent one string, or nulls among strings."""
    if isinstance(images, str):
        return [images]
    if isinstance(images, list | tuple):
        return ["null" if image is None else image for image in images]
    return images


def shown(reference: str) -> str:
    """Return what a message calls it: no password, no query of a URL, no control character."""
    if reference[:5].lower() == "data:":
        return f"data: URL of {len(reference):,} characters"
    text = reference[: 20 * MAX_SHOWN_CHARS].partition("?")[0].partition("#")[0]
    if "://" in text or "@" in text:
        # By hand, for malformed URLs: what stands before the last @ may be a password.
        scheme, separator, rest = text.rpartition("://")
        text = f"{scheme.rpartition('@')[2]}{separator}{rest.rpartition('@')[2]}"
    text = printable(text[: 2 * MAX_SHOWN_CHARS])
    return f"'{text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + '...'}'"


def read_reference(reference: str, roots: Sequence[Path], *, max_bytes: int) -> bytes:
    """Return the encoded image of a data: URL or a local file.

    Args:
        reference: A data: URL, or a path that is absolute or relative to a root.
        roots: Resolved directories that local files may lie below.
        max_bytes: Larger images are refused.

    Raises:
        ToolError: If it is not allowed, missing, no valid base64, or too large.
    """
    if reference[:5].lower() == "data:":
        return _read_data_url(reference, max_bytes)
    if "://" in reference or _scheme(reference) in ("file", "http", "https"):
        raise _not_allowed(reference, NO_FETCHING)
    return _read_below(reference, roots, max_bytes)


def _scheme(reference: str) -> str:
    try:
        return urlsplit(reference).scheme.lower()
    except ValueError:  # for example a bracket that is never closed
        return reference.partition(":")[0].lower()


def _not_allowed(reference: str, problem: str) -> ToolError:
    return ToolError(ErrorKind.image_not_allowed, f"image {shown(reference)} {problem}")


def _read_data_url(reference: str, max_bytes: int) -> bytes:
    header = DATA_URL.match(reference)
    name = f"image {shown(reference)}"
    if header is None:
        problem = "does not begin with data:image/<type>;base64,"
        raise ToolError(ErrorKind.image_unreadable, f"{name} {problem}")
    num_bytes = (len(reference) - header.end()) // 4 * 3 - reference[-2:].count("=")
    if num_bytes > max_bytes:  # before it is decoded
        raise ToolError(ErrorKind.too_large, f"{name} holds more than {max_bytes:,} bytes")
    try:
        return base64.b64decode(reference[header.end() :], validate=True)
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        raise ToolError(ErrorKind.image_unreadable, f"{name} is no valid base64") from None


def _read_below(reference: str, roots: Sequence[Path], max_bytes: int) -> bytes:
    """Return the bytes of a regular file below the first root that has it, links followed first.

    A path outside the roots is refused in the same words whether or not it exists.
    """
    _check_path(reference)
    path = Path(reference)
    is_inside = False
    for candidate in [path] if path.is_absolute() else [root / path for root in roots]:
        real = Path(os.path.realpath(candidate))
        root = next((root for root in roots if real.is_relative_to(root)), None)
        if root is None:
            continue
        is_inside = True
        data = _read_file(root, real.relative_to(root).parts, reference, max_bytes)
        if data is not None:
            return data
    if is_inside:
        raise ToolError(ErrorKind.image_missing, f"image {shown(reference)} does not exist")
    raise _not_allowed(reference, NOT_BELOW)


def _check_path(reference: str) -> None:
    if len(reference) > MAX_PATH_CHARS:
        raise _not_allowed(reference, f"is longer than {MAX_PATH_CHARS} characters")
    if any(unicodedata.category(c) in CONTROL for c in reference):
        problem = "holds a null byte, a line break or another control character"
        raise _not_allowed(reference, problem)
    if ".." in Path(reference).parts:
        raise _not_allowed(reference, "climbs with `..`; give the path itself")


def _read_file(root: Path, parts: Sequence[str], reference: str, max_bytes: int) -> bytes | None:
    """Return the bytes; None if there is no such file."""
    try:
        descriptor = _open_below(root, parts)
    except OSError as error:
        if error.errno in MISSING:
            return None
        if error.errno == errno.ELOOP:  # a link that was put there after it was resolved
            raise _not_allowed(reference, NOT_BELOW) from None
        reason = os.strerror(error.errno or 0)
        message = f"image {shown(reference)}: {reason}"
        raise ToolError(ErrorKind.image_unreadable, message) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_allowed(reference, "is no regular file")
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        message = f"image {shown(reference)} has more than {max_bytes:,} bytes, the limit"
        raise ToolError(ErrorKind.too_large, message)
    return data


def _open_below(root: Path, parts: Sequence[str]) -> int:
    """Open step by step without following a link, so that nobody can swap a folder meanwhile."""
    # NONBLOCK: a pipe that nobody writes to would hold the open for ever.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for position, part in enumerate(parts):
        folder = os.O_DIRECTORY if position < len(parts) - 1 else 0
        try:
            deeper = os.open(part, flags | folder, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = deeper
    return descriptor
