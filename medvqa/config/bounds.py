"""The bounds of every value of a config: one rule per type, narrowed by a field's own interval."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING

# Whatever a field does not narrow. An infinite or absurd number is a slip of the keyboard.
INTERVALS: dict[type, str] = {int: "[1, 1000000000]", float: "(0, 1000000]"}
STEPS = "[1, 1000000]"
SEED = "[0, 4294967295]"  # what every library's generator takes
MAX_TEXT, MAX_FILE_NAME = 4096, 255  # characters of a path, bytes of each part of it
NOTHING: Mapping[str, Any] = {}
INTERVAL = re.compile(r"([\[(])(\S+), (\S+)([\])])")


def bounded(interval: str, default: Any = MISSING) -> Any:
    """Return a dataclass field whose numbers lie in the interval, such as `[0, 1)`."""
    return dataclasses.field(default=default, metadata={"interval": interval})


def named(default: Any = MISSING) -> Any:
    """Return a dataclass field that names a file or directory of the run."""
    return dataclasses.field(default=default, metadata={"is_name": True})


def check(holds: bool, message: str) -> None:
    """Raise a `ValueError` with the message unless the condition holds."""
    if not holds:
        raise ValueError(message)


def exclude(others: Mapping[str, bool], message: str) -> None:
    """Raise a `ValueError` if one of the settings is chosen.

    Args:
        others: Settings such as `model.device=cpu`, and whether each is chosen.
        message: With `{setting}`, and `{key}` for its part before the equals sign.
    """
    for setting, is_chosen in others.items():
        key = setting.partition("=")[0]
        check(not is_chosen, message.format(setting=setting, key=key))


def within_bounds(
    schema: Any, values: Any, key: str = "", field: Mapping[str, Any] = NOTHING
) -> Any:
    """Return plain values of a dataclass with `~` expanded in paths.

    Args:
        schema: The dataclass, or the type of a value in it.
        values: Its plain, resolved values.
        key: Of the value in the whole config, for messages.
        field: Metadata of the dataclass field.

    Raises:
        ValueError: If a value is out of bounds; it names the key and the bounds.
    """
    if values is None or values == MISSING:
        return values
    if dataclasses.is_dataclass(schema):
        check(isinstance(values, Mapping), f"{key} must hold settings, got {values!r:.40}")
        hints, prefix = get_type_hints(schema), f"{key}." if key else ""
        return {
            f.name: within_bounds(hints[f.name], values[f.name], prefix + f.name, f.metadata)
            for f in dataclasses.fields(schema)
        }
    kind, parts = get_origin(schema), get_args(schema)
    if kind in (Union, UnionType):
        return within_bounds(parts[0], values, key, field)
    if kind is list:
        check(isinstance(values, list), f"{key} must be a list, got {values!r:.40}")
        return [within_bounds(parts[0], v, f"{key}[{i}]", field) for i, v in enumerate(values)]
    if kind is dict:
        for name in values:
            _check_name(f"a name in {key}", name)
        return {k: within_bounds(parts[1], v, f"{key}.{k}", field) for k, v in values.items()}
    checker = CHECKS.get(schema)
    return values if checker is None else checker(key, values, field)


def _number(key: str, value: Any, field: Mapping[str, Any]) -> Any:
    check(isinstance(value, int | float), f"{key} must be a number, got {value!r:.40}")
    kind = float if isinstance(value, float) else int
    interval = field.get("interval", INTERVALS[kind])
    match = INTERVAL.fullmatch(interval)
    assert match is not None, interval
    low, high = float(match[2]), float(match[3])
    above = value >= low if match[1] == "[" else value > low
    below = value <= high if match[4] == "]" else value < high
    check(above and below, f"{key} must be in {interval}, got {value!s:.40}")
    return value


def _text(key: str, value: str, field: Mapping[str, Any]) -> str:
    check(isinstance(value, str), f"{key} must be a text, got {value!r:.40}")
    check(value.strip() != "", f"{key} is empty; for no value write null")
    check("\0" not in value, f"{key} holds a NUL character; remove it")
    check(not re.search("[\ud800-\udfff]", value), f"{key} holds half a character; retype it")
    check(
        len(value) <= MAX_TEXT
        and all(len(part.encode()) <= MAX_FILE_NAME for part in value.split("/")),
        f"{key} is too long: at most {MAX_TEXT} characters, and {MAX_FILE_NAME} between slashes",
    )
    if field.get("is_name"):
        _check_name(key, value)
    try:
        return str(Path(value).expanduser()) if value.startswith("~") else value
    except RuntimeError:
        raise ValueError(
            f"{key} names the home of a user who is not there: {value!r:.40}"
        ) from None


def _check_name(key: str, value: str) -> None:
    check(
        re.fullmatch(r"[^/\0\s][^/\0]{0,99}", value) is not None and value not in (".", ".."),
        f"{key} names a directory: 1 to 100 characters without a slash, got {value[:100]!r}",
    )


CHECKS: dict[type, Callable[[str, Any, Mapping[str, Any]], Any]] = {
    int: _number, float: _number, str: _text
}  # fmt: skip
