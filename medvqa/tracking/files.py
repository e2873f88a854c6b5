"""The files that a run writes into its directory, and setting them aside."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from medvqa.config.errors import UserError
from medvqa.tracking.record import DamagedError, read_run

# Written by a run or a command about it; `fresh=true` moves nothing else.
WRITTEN = (
    *("run.json", "results.json", "contamination.json", "preview.txt", "wandb_id", "*.jsonl"),
    *("loss.png", "metrics.png", "confidence.png", "samples.png", "calibration.json", "job.json"),
    *("status.json", "slurm.json", "after_merge", "evaluation/*/*/served.jsonl"),
    *(".hydra/config.yaml", ".hydra/overrides.yaml", ".hydra/hydra.yaml", "checkpoints/step-*"),
    *("adapter/adapter_*", "adapter/README.md", "export/adapter", "export/merged", "wandb-data"),
    *("evaluation/*/*/metrics.json", "evaluation/*/*/predictions.jsonl"),
    *("wandb/*run-*", "wandb/latest-run", "wandb/debug*.log"),
)
# Written after run.json only.
COMPUTED = (
    *("metrics.jsonl", "order.jsonl", "results.json", "evaluation/*/*/metrics.json"),
    *("checkpoints/step-*", "adapter/adapter_*"),
)


def has_results(directory: Path, values: Mapping[str, Any]) -> bool:
    """Return whether the run that run.json describes has computed anything.

    Raises:
        UserError: If there are such files without run.json: a run would overwrite or continue them.
    """
    computed = [path for pattern in COMPUTED for path in directory.glob(pattern)]
    if computed and not values:
        raise UserError(
            f"{directory} holds {computed[0].relative_to(directory)} without run.json, so nobody "
            "knows what made it; give another directory, or move such files away"
        )
    return bool(computed)


def set_aside(directory: Path) -> Path | None:
    """Move the files of an earlier run to `previous-N/` below the directory.

    Nothing is deleted, and no file that a run does not write is touched.

    Raises:
        UserError: If run.json is another program's.
    """
    if not (directory / "run.json").is_file():
        return None
    with suppress(DamagedError):  # it is set aside, too
        read_run(directory)
    number = 1
    while (directory / f"previous-{number}").exists():
        number += 1
    target = directory / f"previous-{number}"
    for path in [path for pattern in WRITTEN for path in directory.glob(pattern)]:
        copy = target / path.relative_to(directory)
        copy.parent.mkdir(parents=True, exist_ok=True)
        path.rename(copy)
    for parent in sorted({path.partition("/")[0] for path in WRITTEN if "/" in path}):
        _remove_empty(directory / parent)
    return target


def _remove_empty(directory: Path) -> None:
    if directory.is_dir():
        for below in directory.iterdir():
            _remove_empty(below)
        with suppress(OSError):  # something else is in there
            directory.rmdir()
