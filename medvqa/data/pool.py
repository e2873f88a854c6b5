"""Data sets by name: rows -> `Example`."""

import difflib
import hashlib
import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from importlib import import_module
from typing import Any, NamedTuple

from medvqa.config.data import DataConfig, RowsConfig, SourceConfig
from medvqa.config.errors import UserError
from medvqa.data.bad_rows import BadRows
from medvqa.data.example import Example
from medvqa.data.rows import Drawn
from medvqa.data.tables import tables
from medvqa.data.verification import usable

Loader = Callable[[RowsConfig, int, BadRows], list[Example] | Drawn]
log = logging.getLogger(__name__)
SHOWN_SKIPPED = 100  # reasons in run.json; the log has them all

# The module that loads each set; imported on demand, so that a config check costs no library.
LOADERS = {
    name: f"medvqa.data.{name}"
    for name in ("phantom", "vqa_rad", "slake", "pubmed_vision", "jsonl")
}
LOADERS |= {f"vqa_med_{year}": "medvqa.data.vqa_med" for year in (2019, 2020, 2021)}
DATASETS = {**LOADERS, **dict.fromkeys(tables(), "medvqa.data.table")}


class Part(NamedTuple):
    """One data set of a pool.

    Attributes:
        num_available: Usable rows; for a set that is too large to read whole, rows of its index.
        num_sampled: Those that the pool was given; the gate may drop some of them later.
        num_skipped: Unusable rows.
        sha256: Of the usable rows, also those that were not sampled; of an index, the sampled ones.
    """

    num_available: int
    num_sampled: int
    num_skipped: int
    sha256: str


class Pool(NamedTuple):
    """The rows of a source, and what is not among them.

    Attributes:
        parts: By the names that a mixture gives them; one by the set's name if it is none.
        skipped: Why a row could not be used, one text per row.
    """

    examples: list[Example]
    parts: dict[str, Part]
    skipped: list[str]

    def describe(self) -> dict[str, Any]:
        """Return counts, for each part too, and a hash over what a question is, for run.json."""
        examples = self.examples
        return {
            "num_examples": len(examples),
            "num_images": len({name for example in examples for name in example.image_ids}),
            "answer_types": dict(Counter(example.answer_type for example in examples)),
            "type_origins": dict(Counter(example.type_origin for example in examples)),
            "sources": dict(Counter(example.source for example in examples)),
            "splits": dict(Counter(example.split for example in examples)),
            "parts": {
                name: {**part._asdict(), "num_not_sampled": part.num_available - part.num_sampled}
                for name, part in self.parts.items()
            },
            "num_skipped": len(self.skipped),
            "skipped": self.skipped[:SHOWN_SKIPPED],
            "sha256": rows_sha256(examples),
        }


def repository(config: RowsConfig) -> str | None:
    """Return the repository of the hub that a source reads; None for a source without one."""
    if config.name in tables():
        return config.repository or tables()[config.name].repository
    module = import_module(DATASETS[config.name]) if config.name in DATASETS else None
    return getattr(module, "HUB_NAME", None)


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
    return _load_source(config, seed, config.limit, f"{config.name}: limit")


def load_sets(config: DataConfig) -> dict[str, Pool]:
    """Return the evaluation sets by name; see `load_pool`."""
    return {
        name: at_most(
            load_pool(source, seed=config.seed), config.evaluation_limit, seed=config.seed
        )
        for name, source in config.evaluation.items()
    }


def at_most(pool: Pool, size: int | None, *, seed: int) -> Pool:
    """Return the set, or a seeded sample of its rows where it has more than are to be asked."""
    if size is None or len(pool.examples) <= size:
        return pool
    retained = sample(pool.examples, size, seed=seed, setting="data.evaluation_limit")
    if len(pool.parts) == 1:
        counts = dict.fromkeys(pool.parts, len(retained))
    else:  # a mixture's ids begin with the part's name
        counts = dict(Counter(example.id.partition("/")[0] for example in retained))
    parts = {
        name: part._replace(num_sampled=counts.get(name, 0)) for name, part in pool.parts.items()
    }
    return pool._replace(examples=retained, parts=parts)


def _load_source(config: RowsConfig, seed: int, size: int | None, setting: str) -> Pool:
    """Load one data set and keep a sample; `setting` is what a message calls the size."""
    if config.name not in DATASETS:
        near = difflib.get_close_matches(config.name, DATASETS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(
            f"data.name: unknown data set {config.name!r}{hint} (known: {', '.join(DATASETS)})"
        )
    load: Loader = import_module(DATASETS[config.name]).load
    bad_rows = BadRows(config.max_bad_rows)
    values = {field.name: getattr(config, field.name) for field in fields(RowsConfig)}
    loaded = load(RowsConfig(**{**values, "limit": size}), seed, bad_rows)
    if isinstance(loaded, Drawn):
        examples, num_available = loaded
    else:
        examples = usable(loaded, bad_rows)
        num_available = len(examples)
    for reason in bad_rows.reasons:
        log.warning("%s: skipped a row: %s", config.name, reason)
    if not examples:
        raise UserError(f"{config.name}: split {config.split!r} has no rows")
    repeated = [name for name, count in Counter(e.id for e in examples).items() if count > 1]
    if repeated:
        raise UserError(f"{config.name}: {len(repeated)} ids occur twice, first {repeated[0]!r}")
    sha256 = rows_sha256(examples)
    if size is not None:
        examples = sample(examples, size, seed=seed, setting=setting)
    part = Part(num_available, len(examples), len(bad_rows.reasons), sha256)
    return Pool(examples, {config.name: part}, bad_rows.reasons)


def _load_mixture(config: SourceConfig, seed: int) -> Pool:
    quotas = {name: part.quota for name, part in config.parts.items()}
    setting = "data.parts.{}: its quota"
    weights = {name: part.weight for name, part in config.parts.items() if part.weight}
    if weights:
        assert config.limit is not None
        quotas |= shares(config.limit, weights)
        setting = "data.parts.{}"
    mixed = Pool([], {}, [])
    for name, part in config.parts.items():
        size = part.limit if quotas[name] is None else quotas[name]
        pool = _load_source(part, seed, size, setting.format(name))
        mixed.examples.extend(replace(row, id=f"{name}/{row.id}") for row in pool.examples)
        (mixed.parts[name],) = pool.parts.values()
        mixed.skipped.extend(pool.skipped)
        available = f"{mixed.parts[name].num_available:,}"
        log.info("%s: %s of %s rows", name, f"{len(pool.examples):,}", available)
    return mixed


def rows_sha256(examples: Iterable[Example], *, with_types: bool = False) -> str:
    """Return a hash over what a question is: id, text, answers, pictures, options if any.

    Its answer type too, if asked.
    """
    digest = hashlib.sha256()
    for e in examples:
        row = [e.id, e.question, e.answers, e.image_ids, *([e.options] if e.options else [])]
        row += [e.answer_type] if with_types else []
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


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
