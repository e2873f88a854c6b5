"""Bytes of a local file, only from below the allowed roots."""

import errno
import os
import stat
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from medvqa.serve.references import shown
from medvqa.serve.tool_error import ErrorKind, ToolError

MAX_PATH_CHARS = 4096
NOT_BELOW = "is not below an allowed root (allowed_roots in the tool's config)"
CONTROL = ("Cc", "Cs")  # and halves of surrogate pairs, which no path can hold
MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


def read_below(reference: str, roots: Sequence[Path], *, max_bytes: int) -> bytes:
    """Return the bytes of a regular file below one of the roots, links followed first.

    Args:
        reference: Absolute, or relative to a root; the first root that has it counts.
        roots: Resolved directories.
        max_bytes: Larger files are refused.

    Raises:
        ToolError: In the same words for a path outside the roots whether or not it exists.
    """
    _check_text(reference)
    path = Path(reference)
    candidates = [path] if path.is_absolute() else [root / path for root in roots]
    is_inside = False
    for candidate in candidates:
        real = Path(os.path.realpath(candidate))
        root = next((root for root in roots if real.is_relative_to(root)), None)
        if root is None:
            continue
        is_inside = True
        data = _read(root, real.relative_to(root).parts, reference, max_bytes)
        if data is not None:
            return data
    if is_inside:
        raise ToolError(ErrorKind.image_missing, f"image {shown(reference)} does not exist")
    raise ToolError(ErrorKind.image_not_allowed, f"image {shown(reference)} {NOT_BELOW}")


def _check_text(reference: str) -> None:
    problem = None
    if len(reference) > MAX_PATH_CHARS:
        problem = f"is longer than {MAX_PATH_CHARS} characters"
    elif any(unicodedata.category(c) in CONTROL for c in reference):
        problem = "holds a null byte, a line break or another control character"
    elif ".." in Path(reference).parts:
        problem = "climbs with `..`; give the path itself"
    if problem:
        raise ToolError(ErrorKind.image_not_allowed, f"image {shown(reference)} {problem}")


def _read(root: Path, parts: Sequence[str], reference: str, max_bytes: int) -> bytes | None:
    """Return the bytes; None where there is no such file."""
    name = shown(reference)
    try:
        descriptor = _open_below(root, parts)
    except OSError as error:
        if error.errno in MISSING:
            return None
        if error.errno == errno.ELOOP:  # a link that was put there after it was resolved
            raise ToolError(ErrorKind.image_not_allowed, f"image {name} {NOT_BELOW}") from None
        reason = os.strerror(error.errno or 0)
        raise ToolError(ErrorKind.image_unreadable, f"image {name}: {reason}") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise ToolError(ErrorKind.image_not_allowed, f"image {name} is no regular file")
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ToolError(
            ErrorKind.too_large, f"image {name} has more than {max_bytes:,} bytes, the limit"
        )
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
