"""Data sets by name: rows -> `Example`."""

import difflib
import logging
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import NamedTuple

from medvqa.config import RowsConfig, SourceConfig
from medvqa.data.bad_rows import BadRows
from medvqa.example import Example, UserError

Loader = Callable[[RowsConfig, int, BadRows], list[Example]]
log = logging.getLogger(__name__)

# Module names, imported on demand: checking a config never pays for a loader's libraries.
DATASETS = (
    "phantom",
    "vqa_rad",
    "slake",
    "path_vqa",
    "vqa_med_2019",
    "robailleo",
    "imaging_combined",
    "jsonl",
)


class Pool(NamedTuple):
    """The rows of a source, and what is not among them.

    Attributes:
        available: Rows before sampling, by part of a mixture; one part if it is none.
        skipped: Why a row could not be used, one text a row.
    """

    examples: list[Example]
    available: dict[str, int]
    skipped: list[str]


def load_examples(config: RowsConfig, *, seed: int) -> list[Example]:
    """Return the rows of one source in data-set order; see `load_pool`."""
    return load_pool(config, seed=seed).examples


def load_pool(config: RowsConfig, *, seed: int) -> Pool:
    """Return the rows of one source in data-set order, and counts of what was left out.

    Args:
        config: Which rows.
        seed: Draws phantoms and the sample that `limit`, a quota or a weight keeps.

    Raises:
        UserError: If name, split, path or rows are wrong, naming file and row.
    """
    if isinstance(config, SourceConfig) and config.parts:
        return _load_mixture(config, seed)
    if config.name not in DATASETS:
        near = difflib.get_close_matches(config.name, DATASETS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(
            f"data.name: unknown data set {config.name!r}{hint} (known: {', '.join(DATASETS)})"
        )
    load: Loader = import_module(f"medvqa.data.{config.name}").load
    bad_rows = BadRows(config.max_bad_rows)
    examples = load(config, seed, bad_rows)
    for reason in bad_rows.reasons:
        log.warning("%s: skipped a row: %s", config.name, reason)
    if not examples:
        raise UserError(f"{config.name}: split {config.split!r} has no rows")
    repeated = [name for name, count in Counter(e.id for e in examples).items() if count > 1]
    if repeated:
        raise UserError(f"{config.name}: {len(repeated)} ids occur twice, first {repeated[0]!r}")
    kept = examples
    if config.limit is not None:
        kept = sample(examples, config.limit, seed=seed, setting=f"{config.name}: limit")
    return Pool(kept, {config.name: len(examples)}, bad_rows.reasons)


def _load_mixture(config: SourceConfig, seed: int) -> Pool:
    pools = {name: load_pool(part, seed=seed) for name, part in config.parts.items()}
    quotas = {name: part.quota for name, part in config.parts.items()}
    weights = {name: part.weight for name, part in config.parts.items() if part.weight}
    if weights:
        assert config.limit is not None
        quotas.update(shares(config.limit, weights))
    examples = []
    for name, pool in pools.items():
        quota = quotas[name]
        rows = pool.examples
        if quota is not None:
            setting = f"data.parts.{name}: its quota" if not weights else f"data.parts.{name}"
            rows = sample(rows, quota, seed=seed, setting=setting)
        examples += [replace(row, id=f"{name}/{row.id}") for row in rows]
        log.info("%s: %s of %s rows", name, f"{len(rows):,}", f"{len(pool.examples):,}")
    return Pool(
        examples,
        {name: len(pool.examples) for name, pool in pools.items()},
        [reason for pool in pools.values() for reason in pool.skipped],
    )


def sample(rows: Sequence[Example], size: int, *, seed: int, setting: str) -> list[Example]:
    """Return a seeded sample in data-set order; raise if there are fewer rows than asked for."""
    if size > len(rows):
        raise UserError(f"{setting}={size}, but there are only {len(rows)} rows")
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), size))]


def shares(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Divide a total by weights; what rounding leaves goes to the largest remainders."""
    whole = sum(weights.values())
    exact = {name: total * weight / whole for name, weight in weights.items()}
    result = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: result[name] - exact[name])
    for name in by_remainder[: total - sum(result.values())]:
        result[name] += 1
    return result
