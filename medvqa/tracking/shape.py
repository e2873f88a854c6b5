"""Stored values -> what does not have the form that their readers expect, in one line."""

import math
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import (
    Any,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from medvqa.config.errors import UserError, first_line

FIX = "say fresh=true to start over"
HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # which no file can hold
QUICK: frozenset[type] = frozenset({str, int, float, bool, types.NoneType})
LONGEST = 40  # characters of a value in a message


class DamagedError(UserError):
    """A file of the run cannot be read; starting over helps."""


def checked(values: Any, kind: Any, place: Path | str, required: Iterable[str] = ()) -> Any:
    """Return the values of a file or a line of it.

    Args:
        values: As JSON gave them.
        kind: A dataclass or a TypedDict, or the type of a simple value.
        place: For the message, such as `PATH, line 3`.
        required: Names that must be there beside those that the kind requires.

    Raises:
        DamagedError: If a value is missing or of another type.
    """
    reason = misfit(values, kind) or _first(
        f"{name} is missing" for name in required if name not in values
    )
    if reason:
        raise DamagedError(f"{place} is damaged: {reason}; {FIX}")
    return values


@contextmanager
def reading(place: Path | str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn what a missing or odd value raises in a reader of a whole record into one line.

    Args:
        place: The record's file.
        kinds: Exceptions beside those of Python, such as a template's.

    Raises:
        DamagedError: With the reader's own reason.
    """
    caught: tuple[type[Exception], ...] = (KeyError, TypeError, ValueError, AttributeError, *kinds)
    try:
        yield
    except UserError:
        raise
    except caught as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else first_line(error)
        raise DamagedError(f"{place} is damaged: {reason}; {FIX}") from error


def misfit(value: Any, kind: Any, name: str = "") -> str | None:
    """Return what does not fit the type, such as `model.name is 7`; None where all fits."""
    form, args = _form(kind)
    if form == "simple":
        return None if _is_simple(value, kind) else _told(name, value, _noun(kind))
    if form == "union":
        reasons = [misfit(value, one, name) for one in args]
        return None if None in reasons else reasons[0]
    if form == "list":
        if not isinstance(value, list | tuple):
            return _told(name, value, "a list")
        return _first(misfit(own, args[0], f"{name}[{n}]") for n, own in enumerate(value))
    if not isinstance(value, Mapping):
        return _told(name, value, "an object")
    if form == "fields":
        return _misfit_of_fields(value, kind, name)
    return _first(misfit(own, args[1], _joined(name, key)) for key, own in value.items())


@cache
def _form(kind: Any) -> tuple[str, tuple[Any, ...]]:
    """Return how a type is checked, and its arguments."""
    origin, args = get_origin(kind), get_args(kind)
    if is_dataclass(kind) or is_typeddict(kind):
        return "fields", ()
    if origin is None or origin is Literal:
        return "simple", args
    if origin in (Union, types.UnionType):
        return "union", args
    return ("mapping" if issubclass(origin, Mapping) else "list"), args


def _misfit_of_fields(value: Mapping[str, Any], kind: Any, name: str) -> str | None:
    required, hints = _fields(kind)
    if missing := sorted(required - value.keys()):
        return f"{_joined(name, missing[0])} is missing"
    return _first(
        misfit(value[key], own, _joined(name, key))
        for key, (own, quick) in hints.items()
        if key in value and not _fits_at_once(value[key], quick)
    )


@cache
def _fields(kind: Any) -> tuple[frozenset[str], dict[str, tuple[Any, frozenset[type]]]]:
    """Return the required names of a dataclass or a TypedDict, and each name's type."""
    hints = get_type_hints(kind)
    required: Iterable[str] = getattr(kind, "__required_keys__", ())
    if is_dataclass(kind):
        required = (f.name for f in fields(kind) if f.default is f.default_factory is MISSING)
    return frozenset(required), {name: (own, _quick(own)) for name, own in hints.items()}


def _quick(kind: Any) -> frozenset[type]:
    form, args = _form(kind)
    kinds = args if form == "union" else (kind,)
    return frozenset(one for one in QUICK if one in kinds)


def _fits_at_once(value: Any, quick: frozenset[type]) -> bool:
    """Spare the whole check for most values of the hundred thousand rows of a grid."""
    kind = type(value)
    return kind in quick and (kind is not str or value.isascii()) and value != math.inf


def _is_simple(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    if kind is types.NoneType:
        return value is None
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind is float and isinstance(value, str):  # JSON has no NaN and no infinity
        return value in ("NaN", "Infinity", "-Infinity")
    if kind in (int, float):
        return isinstance(value, int | kind) and value != math.inf
    if kind is bool:
        return isinstance(value, int | float) and value in (0, 1)
    if isinstance(kind, type) and issubclass(kind, Enum | str | Path):
        return isinstance(value, str) and (value.isascii() or not HALF_CHARACTER.search(value))
    return isinstance(value, kind)


def _noun(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(kind, "text")


def _told(name: str, value: Any, noun: str) -> str:
    text = ascii(value)
    return f"{name or 'it'} is {text[:LONGEST]}{'...' * (len(text) > LONGEST)}, not {noun}"


def _joined(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _first(reasons: Iterable[str | None]) -> str | None:
    return next(filter(None, reasons), None)
