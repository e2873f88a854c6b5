"""What an agent sends in place of images, and how a message may name it without a secret."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from medvqa.serve.tool_error import ErrorKind, ToolError

MAX_ENTRIES = 256  # of the list, nothings included
MAX_SHOWN_CHARS = 80
NOTHINGS = ("", "none", "null")

Images = Sequence[str | None] | str | None


def references(images: Images) -> tuple[list[str], int]:
    """Return the references and how many entries meant nothing.

    Agents send `"None"`, `"null"`, empty strings and, for one image, the string alone.

    Raises:
        ToolError: If it is no list of strings.
    """
    entries = [images] if isinstance(images, str) else images
    if entries is None:
        return [], 0
    if not isinstance(entries, list | tuple) or not all(
        entry is None or isinstance(entry, str) for entry in entries
    ):
        raise ToolError(ErrorKind.image_not_allowed, "images must be a list of strings")
    if len(entries) > MAX_ENTRIES:
        raise ToolError(ErrorKind.too_many_images, f"the list has {len(entries)} entries")
    stripped = [(entry or "").strip() for entry in entries]
    kept = [entry for entry in stripped if entry.lower() not in NOTHINGS]
    return kept, len(stripped) - len(kept)


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
        text = _without_user(text)
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: 2 * MAX_SHOWN_CHARS])
    cut = text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."
    return f"'{cut}'"


def _without_user(text: str) -> str:
    # By hand where the URL is malformed: what stands before the last @ may be a password.
    scheme, separator, rest = text.rpartition("://")
    return f"{scheme.rpartition('@')[2]}{separator}{rest.rpartition('@')[2]}"


def scheme_of(reference: str) -> str:
    """Return the lower-case scheme of a URL, or an empty string for a path."""
    try:
        return urlsplit(reference).scheme.lower()
    except ValueError:  # for example a bracket that is never closed
        return reference.partition(":")[0].lower()
