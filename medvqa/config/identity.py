"""What makes two runs the same run: the settings that change results."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

# What cannot change a result, so a run is the same run with or without it.
NOT_RESULTS = (
    "tracking",
    "study",
    "fresh",
    "training.gpus",
    "training.rank_timeout_s",
    "training.sharding",
)


def run_id(config: Mapping[str, Any]) -> str:
    """Return 12 hexadecimal digits that name the resolved config, as far as it changes results."""
    settings = results_only(config)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def results_only(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the config without the settings that cannot change a result."""
    return {
        name: results_only(value, f"{prefix}{name}.") if isinstance(value, Mapping) else value
        for name, value in config.items()
        if f"{prefix}{name}" not in NOT_RESULTS
    }


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted key and value of each setting; an empty group is a setting."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
