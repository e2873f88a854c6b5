"""What a run still has to fetch, and what it writes."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvqa.config.data import RowsConfig, SourceConfig
from medvqa.config.schema import Config
from medvqa.data.pool import repository
from medvqa.models.source import EMBEDDED, HUB_PATIENCE_S, hub_answers

CHECKPOINTS_KEPT = 2


@dataclass(frozen=True, kw_only=True)
class Download:
    """One repository of the hub that the run reads.

    Attributes:
        num_bytes: Size on the hub; None where it could not be asked.
        is_cached: Whether some revision of it is in the hub's local cache already.
    """

    kind: str
    name: str
    num_bytes: int | None
    is_cached: bool


def needed_downloads(config: Config) -> list[Download]:
    """Return the hub's repositories that the run reads; local copies are none."""
    from huggingface_hub import constants

    names = [("model", config.model.name)]
    if config.model.path is not None or config.model.name in EMBEDDED:
        names = []
    sources: list[SourceConfig] = [config.data, *config.data.evaluation.values()]
    rows: list[RowsConfig] = [part for s in sources for part in (s.parts.values() or [s])]
    names += [("dataset", name) for r in rows if r.path is None and (name := repository(r))]
    cache = Path(constants.HF_HUB_CACHE)
    return [
        Download(
            kind=kind,
            name=name,
            num_bytes=_size(kind, name),
            is_cached=(cache / f"{kind}s--{name.replace('/', '--')}").is_dir(),
        )
        for kind, name in dict.fromkeys(names)
    ]


def _size(kind: str, name: str) -> int | None:
    from huggingface_hub import HfApi

    if not hub_answers():
        return None
    try:
        info: Any = HfApi().repo_info(
            name, repo_type=kind, files_metadata=True, timeout=HUB_PATIENCE_S
        )
    except Exception:  # the hub and the network raise a dozen unrelated types
        return None
    return sum(int(file.size or 0) for file in info.siblings or [])


def free_bytes(directory: Path) -> int:
    """Return what is free where the directory is, or will be."""
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free


def written_bytes(num_adapter: int) -> int:
    """Return about what the run writes: the adapter, and checkpoints of it with both moments."""
    return num_adapter * 4 * (1 + 3 * CHECKPOINTS_KEPT)
