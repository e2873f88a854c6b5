"""Data sets by name: rows -> `Example`."""

import difflib
import logging
import random
from collections import Counter
from collections.abc import Callable
from importlib import import_module

from medvqa.config import SourceConfig
from medvqa.data.bad_rows import BadRows
from medvqa.example import Example, UserError

Loader = Callable[[SourceConfig, int, BadRows], list[Example]]
log = logging.getLogger(__name__)

# Module names, imported on demand: checking a config never pays for a loader's libraries.
DATASETS = ("phantom", "vqa_rad", "jsonl")


def load_examples(
    config: SourceConfig, *, seed: int, bad_rows: BadRows | None = None
) -> list[Example]:
    """Return the rows of one source in data-set order.

    Args:
        config: Which rows.
        seed: Draws phantoms and the sample that `limit` keeps.
        bad_rows: Receives what was skipped; its limit is set from the config.

    Raises:
        UserError: If name, split, path or rows are wrong, naming file and row.
    """
    if config.name not in DATASETS:
        near = difflib.get_close_matches(config.name, DATASETS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(
            f"data.name: unknown data set {config.name!r}{hint} (known: {', '.join(DATASETS)})"
        )
    load: Loader = import_module(f"medvqa.data.{config.name}").load
    bad_rows = BadRows() if bad_rows is None else bad_rows
    bad_rows.limit = config.max_bad_rows
    examples = load(config, seed, bad_rows)
    for reason in bad_rows.reasons:
        log.warning("%s: skipped a row: %s", config.name, reason)
    if not examples:
        raise UserError(f"{config.name}: split {config.split!r} has no rows")
    repeated = [name for name, count in Counter(e.id for e in examples).items() if count > 1]
    if repeated:
        raise UserError(f"{config.name}: {len(repeated)} ids occur twice, first {repeated[0]!r}")
    if config.limit is None:
        return examples
    if config.limit > len(examples):
        raise UserError(
            f"{config.name}: limit={config.limit}, but split {config.split!r} has "
            f"only {len(examples)} rows"
        )
    kept = sorted(random.Random(seed).sample(range(len(examples)), config.limit))
    return [examples[i] for i in kept]
