"""Where this user's machine keeps what need not be computed twice."""

from collections.abc import Mapping
from pathlib import Path


def cache_directory(environment: Mapping[str, str]) -> Path:
    """Return `MEDVQA_CACHE`, or the place below the user's home."""
    given = environment.get("MEDVQA_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "medvqa"
