"""The space of a search: the config's ranges and choices as Optuna's distributions."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medvqa.config.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

WORD = re.compile(r"[A-Za-z0-9_.+-]+")
FORMS = "{choices: [...]} or {low: ..., high: ..., log: true|false}"

Space = dict[str, "BaseDistribution"]


def read_space(values: Mapping[str, Any] | None) -> Space:
    """Return a distribution per key; a range between integers holds integers only.

    Raises:
        UserError: Naming the key whose range or choices cannot be searched.
    """
    if not values:
        raise UserError(f"hydra.sweeper.space is empty; give key: {FORMS}")
    return {str(key): _distribution(key, value) for key, value in values.items()}


def _distribution(key: str, values: Any) -> "BaseDistribution":
    try:
        import optuna
    except ImportError:
        raise UserError('a search needs Optuna: pip install -e ".[search]"') from None
    forms, names = optuna.distributions, set(values) if isinstance(values, Mapping) else set()
    try:
        if names == {"choices"} and all(WORD.fullmatch(str(value)) for value in values["choices"]):
            return forms.CategoricalDistribution(values["choices"])
        if {"low", "high"} <= names:
            is_whole = all(type(values[end]) is int for end in ("low", "high"))
            form = forms.IntDistribution if is_whole else forms.FloatDistribution
            return form(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"hydra.sweeper.space: {key}: {error}") from error
    raise UserError(f"hydra.sweeper.space: {key} must be {FORMS}, got {values}")


def extremes(distribution: Any) -> Sequence[Any]:
    """Return all choices, or both ends of a range: if these are legal, so is the rest."""
    if hasattr(distribution, "choices"):
        return list(distribution.choices)
    return [distribution.low, distribution.high]


def override(key: str, value: Any) -> str:
    """Return the command line's form of the value."""
    return f"{key}={str(value).lower() if isinstance(value, bool) else value}"
