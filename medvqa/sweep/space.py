"""What a search varies: checked before anything starts, and as Optuna's distributions."""

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from medvqa.config.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

WORD = re.compile(r"[A-Za-z0-9_.+-]+")
FORMS = "{choices: [...]} or {low: ..., high: ..., log: true|false}"

Space = dict[str, dict[str, Any]]


def checked_space(space: Mapping[str, Any] | None) -> Space:
    """Return the space as plain values.

    Raises:
        UserError: Naming the key whose range or choices cannot be searched.
    """
    if not space:
        raise UserError(f"hydra.sweeper.space is empty; give key: {FORMS}")
    return {str(key): _checked(f"hydra.sweeper.space: {key}", said) for key, said in space.items()}


def _checked(where: str, said: Any) -> dict[str, Any]:
    if isinstance(said, Mapping) and set(said) == {"choices"}:
        choices = said["choices"]
        if not (isinstance(choices, list) and choices and all(map(_is_choice, choices))):
            raise UserError(f"{where}: choices must be a list of numbers, booleans or words")
        return {"choices": choices}
    if not (isinstance(said, Mapping) and {"low", "high"} <= set(said) <= {"low", "high", "log"}):
        raise UserError(f"{where} must be {FORMS}, got {said}")
    low, high, is_log = said["low"], said["high"], said.get("log", False)
    if not (_is_number(low) and _is_number(high) and low < high):
        raise UserError(f"{where}: low must be a number below high, got low={low}, high={high}")
    if not isinstance(is_log, bool) or (is_log and low <= 0):
        raise UserError(f"{where}: log must be true or false, and true needs low above 0")
    return {"low": low, "high": high, "log": is_log}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_choice(value: Any) -> bool:
    is_word = isinstance(value, str) and WORD.fullmatch(value) is not None
    return is_word or isinstance(value, bool) or _is_number(value)


def extremes(said: Mapping[str, Any]) -> list[Any]:
    """Return the values whose being legal makes all of a key's values so."""
    return list(said["choices"]) if "choices" in said else [said["low"], said["high"]]


def distributions(space: Space) -> "dict[str, BaseDistribution]":
    """Return Optuna's form; a range between whole numbers has whole numbers only."""
    return {key: _distribution(said) for key, said in space.items()}


def _distribution(said: Mapping[str, Any]) -> "BaseDistribution":
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if "choices" in said:
        return CategoricalDistribution(said["choices"])
    low, high = said["low"], said["high"]
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=said["log"])
    return FloatDistribution(low, high, log=said["log"])


def override(key: str, value: Any) -> str:
    """Return what the command line would say."""
    return f"{key}={str(value).lower() if isinstance(value, bool) else value}"
