"""A mistake -> one clear line in the user's words, with what to do about it."""

import dataclasses
import difflib
import re
from collections.abc import Iterator, Sequence

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    OmegaConfBaseException,
    ValidationError,
)

from medvqa.config import Config


def explain(error: BaseException) -> str:
    """Return what went wrong; a second line holds the choices where there are some."""
    for link in _chain(error):
        text = _explain_one(link)
        if text is not None:
            return text
    return _first_line(error)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _explain_one(error: BaseException) -> str | None:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, wanted = error.missing_cfg_file.rpartition("/")
        return _unknown(f"option {wanted!r} in config group {group!r}", wanted, error.options or [],
                        prefix=f"{group}=")  # fmt: skip
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return _unknown_key(error)
    if isinstance(error, OverrideParseException):
        return f"cannot read the override {error.override!r}; write key=value, or key='a=b'"
    if isinstance(error, ValidationError):
        key = f"{error.full_key}: " if error.full_key else ""
        return key + _first_line(error)
    if isinstance(error, OmegaConfBaseException):
        return _first_line(error)
    return None


def _unknown_key(error: ConfigKeyError | ConfigAttributeError) -> str:
    full_key = str(error.full_key or error.key)
    holder = error.object_type if dataclasses.is_dataclass(error.object_type) else Config
    known = [field.name for field in dataclasses.fields(holder)]
    prefix = full_key[: -len(str(error.key))] if full_key.endswith(str(error.key)) else ""
    return _unknown(f"key {full_key!r}", str(error.key), known, prefix=prefix)


def _unknown(what: str, wanted: str, known: Sequence[str], *, prefix: str) -> str:
    near = difflib.get_close_matches(wanted, known, 3, 0.5)
    suffix = "" if prefix.endswith("=") else "="
    hint = f"; did you mean {' or '.join(f'{prefix}{n}{suffix}' for n in near)}?" if near else ""
    return f"unknown {what}{hint}\n  known: {', '.join(known)}"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Hydra prefixes some texts with the file that it was merging.
    text = lines[0] if lines else type(error).__name__
    return re.sub(r"^Error merging override ", "bad override ", text)
