"""Configs of earlier versions, read as configs of this one."""

from collections.abc import Mapping
from typing import Any

RENAMED = {"lora.rank": "lora.r"}
REMOVED = ("evaluation.cache",)  # they never changed a result


def upgraded(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config that an earlier version recorded, under the names of this version."""
    groups = {
        name: dict(value) if isinstance(value, Mapping) else value for name, value in config.items()
    }
    for old in (*RENAMED, *REMOVED):
        group, _, name = old.partition(".")
        if isinstance(groups.get(group), dict) and name in groups[group]:
            value = groups[group].pop(name)
            if old in RENAMED:
                groups[group][RENAMED[old].partition(".")[2]] = value
    return groups
