"""The results file: one record per part and variant of the model, written after every row."""

import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from medvqa.tracking.environment import provenance
from medvqa.tracking.record import read_json, write_json

KERNELS = ("liger-kernel", "triton", "flash-attn")  # of which `provenance` says nothing


def record_name(part: str, variant: Mapping[str, Any]) -> str:
    """Return the record's name in the file, such as `training qwen3_vl_8b unsloth`."""
    words = [part, variant["model"]]
    words += [variant["backend"]] if variant["backend"] != "transformers" else []
    words += [word for word in ("four_bit", "fp8", "checkpointing") if variant.get(word)]
    words += [f"rank={variant['rank']}"] if variant["rank"] != 16 else []
    return " ".join(words)


class Records:
    """Adds rows to the file; a part measured again replaces its former record."""

    def __init__(self, path: Path, variant: Mapping[str, Any]) -> None:
        self._path = path
        self._variant = variant
        self._records: dict[str, Any] = read_json(path)
        self._begun: set[str] = set()
        self._provenance = {**provenance(), "hardware": hardware(), "kernels": _kernels()}
        # A lent machine holds the tree, but not the history that belongs to it.
        if "COMMIT" in os.environ:
            self._provenance["git"] = {"commit": os.environ["COMMIT"], "dirty": None}

    def add(self, part: str, row: Mapping[str, Any]) -> None:
        """Append a row and write the file."""
        name = record_name(part, self._variant)
        if name not in self._begun:
            self._begun.add(name)
            self._records[name] = {**self._provenance, "part": part, **self._variant, "rows": []}
        self._records[name]["rows"].append(row)
        write_json(self._path, self._records)
        shown = {k: v for k, v in row.items() if k not in ("losses", "tensors")}
        print(part, shown, flush=True)  # noqa: T201


def hardware() -> str:
    """Return the GPU's name."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"


def _kernels() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in KERNELS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions
