"""The cells of a grid, as Hydra's overrides: what is swept, and each job's part of it."""

import re
from collections.abc import Iterator

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from medvqa.config.errors import UserError

BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def swept_keys(config: DictConfig) -> set[str]:
    """Return the keys that a sweep varies, whichever sweeper chooses their values."""
    parser = OverridesParser.create()
    overrides = parser.parse_overrides(list(config.hydra.overrides.task))
    keys = {override.get_key_element() for override in overrides if override.is_sweep_override()}
    for chosen in ("params", "space"):  # of a grid, of a search
        keys |= set(config.hydra.sweeper.get(chosen) or {})
    return {key.lstrip("+") for key in keys}


def cells(config: DictConfig) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the swept part and all overrides of each job; none for a sweeper that searches.

    Raises:
        UserError: If a swept key has no value, so that there is no job, or jobs come in no batches.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    for part in ("launcher", "sweeper"):
        if not OmegaConf.is_dict(value := config.hydra[part]):
            raise UserError(f"hydra.{part}={value} is no choice; write hydra/{part}={value}")
    sweeper = config.hydra.sweeper
    if sweeper._target_ != BASIC_SWEEPER:
        return
    arguments = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    arguments += config.hydra.overrides.task
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    overrides = parser.parse_overrides(arguments)
    (jobs,) = BasicSweeper.split_arguments(overrides, None)
    for override in overrides:
        if override.is_sweep_override() and not [*override.sweep_string_iterator()]:
            raise UserError(f"the grid has no cells: {override.input_line} stands for no value")
    if sweeper.max_batch_size is not None and sweeper.max_batch_size < 1:
        raise UserError("hydra.sweeper.max_batch_size must be at least 1, or null for no limit")
    constant = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    for job in jobs:
        yield [override for override in job if override not in constant], job


def quoted(text: str) -> str:
    """Return the text as a value of an override, whatever characters it has."""
    escaped = re.sub(r"(\\*)'", lambda match: match[1] * 2 + "\\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"
