"""Data sets by name: rows -> `Example`."""

import difflib
import random
from collections import Counter
from collections.abc import Callable
from importlib import import_module

from medvqa.config import SourceConfig
from medvqa.example import Example, UserError

Loader = Callable[[SourceConfig, int], list[Example]]

# Module names, imported on demand: checking a config never pays for a loader's libraries.
DATASETS = ("phantom", "vqa_rad", "jsonl")


def load_examples(config: SourceConfig, *, seed: int) -> list[Example]:
    """Return the rows of one source in data-set order.

    Args:
        config: Which rows.
        seed: Draws phantoms and the sample that `limit` keeps.

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
    examples = load(config, seed)
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
