"""The directory of a run: its lock, the files that a run writes, and setting them aside."""

import fcntl
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from medvqa.config.errors import UserError
from medvqa.config.machine import make_directory
from medvqa.tracking.record import read_run
from medvqa.tracking.shape import DamagedError

PATIENCE_S = 10.0  # for a process that is about to leave a directory
# Written by a run or a command about it; `fresh=true` moves nothing else.
WRITTEN = (
    *("run.json", "results.json", "contamination.json", "preview.txt", "wandb_id"),
    *("metrics.jsonl", "order.jsonl"),
    *("loss.png", "metrics.png", "confidence.png", "samples.png", "calibration.json", "job.json"),
    *("status.json", "slurm.json", "after_merge", "evaluation/*/*/served.jsonl"),
    *(".hydra/config.yaml", ".hydra/overrides.yaml", ".hydra/hydra.yaml", "checkpoints/step-*"),
    *("adapter/adapter_*.*", "adapter/README.md", "export/adapter", "export/merged", "wandb-data"),
    *("evaluation/*/*/metrics.json", "evaluation/*/*/predictions.jsonl"),
    *("wandb/*run-*", "wandb/latest-run", "wandb/debug*.log"),
)
# Written after run.json only.
COMPUTED = (
    *("metrics.jsonl", "order.jsonl", "results.json", "evaluation/*/*/metrics.json"),
    *("checkpoints/step-*", "adapter/adapter_*"),
)
MOVE = "move it away, or give another directory"


@contextmanager
def directory_lock(directory: Path, *, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the directory for this process; the system lets go of it even after SIGKILL.

    Args:
        directory: Made if it is not there.
        patience_s: How long to wait for a process that is about to leave.

    Raises:
        UserError: If another process is writing there, or nobody can.
    """
    make_directory(directory)
    deadline = time.monotonic() + patience_s
    with (directory / ".lock").open("a+") as file:
        while not _try_lock(file):
            if time.monotonic() > deadline:
                file.seek(0)
                owner = file.read().strip() or "another process"
                raise UserError(f"{directory} is being written by process {owner}; wait for it")
            time.sleep(0.1)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        _remove_partials(directory)
        yield


def _remove_partials(directory: Path) -> None:
    """Remove what a killed process had half written; see `record.write_text`."""
    # A run directory may be the user's own, with a whole data set below it: no search in depth.
    for place in ("", "evaluation/*/*/", "after_merge/evaluation/*/*/"):
        for path in directory.glob(f"{place}.*.[0-9]*"):
            match = re.fullmatch(r"\.[a-z]+\.jsonl?\.(\d+)", path.name)
            if match and not Path(f"/proc/{match[1]}").exists():
                path.unlink(missing_ok=True)


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def is_locked(directory: Path) -> bool:
    """Return whether a process is writing there now."""
    try:
        with (directory / ".lock").open("r+") as file:
            return not _try_lock(file)
    except FileNotFoundError:
        return False


def check_places(directory: Path) -> None:
    """Refuse what is in the way of a run, before it trains.

    Raises:
        UserError: If a file has the name of a run's directory, or a directory that of its file.
    """
    for pattern in map(Path, WRITTEN):
        parent = directory / pattern.parts[0]
        if len(pattern.parts) > 1 and parent.exists() and not parent.is_dir():
            raise UserError(f"{parent} is a file where a run makes a directory; {MOVE}")
        for path in directory.glob(str(pattern)) if pattern.suffix else ():
            if path.is_dir():
                raise UserError(f"{path} is a directory where a run writes a file; {MOVE}")


def has_results(directory: Path, values: Mapping[str, Any]) -> bool:
    """Return whether the run that run.json describes has computed anything.

    Raises:
        UserError: If there are such files without run.json: a run would overwrite or continue them.
    """
    computed = [path for pattern in COMPUTED for path in directory.glob(pattern)]
    if computed and not values:
        raise UserError(
            f"{directory} holds {computed[0].relative_to(directory)} without run.json, so nobody "
            f"knows what made it; {MOVE}"
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
