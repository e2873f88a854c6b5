"""Checkpoints that a killed run goes on from: written whole or not at all."""

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from medvqa.config.errors import FULL, UserError
from medvqa.training.step_log import recorded_steps

if TYPE_CHECKING:
    import torch


log = logging.getLogger(__name__)

NUM_KEPT = 2  # should the newest one be damaged


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` optimiser steps."""

    step: int
    adapter: "dict[str, torch.Tensor]"
    optimizer: dict[str, Any]


def save_checkpoint(checkpoint: Checkpoint, directory: Path, run: Mapping[str, str]) -> None:
    """Write `step-XXXXXX/` below the directory, and keep only the one before it.

    The new checkpoint is renamed into place only when all of it is on the disk. So a kill, a crash
    or a full disk leaves the previous one usable.

    Args:
        checkpoint: The state.
        directory: Of all checkpoints of the run.
        run: Hash of the order and engine, which a run that continues must share.
    """
    import torch
    from safetensors.torch import save_file

    target = directory / _name(checkpoint.step)
    partial = directory / f".partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save_file(checkpoint.adapter, partial / "adapter.safetensors")
        with (partial / "optimizer.pt").open("wb") as file:
            torch.save(checkpoint.optimizer, file)
        state = {"step": checkpoint.step, **run}
        (partial / "state.json").write_text(json.dumps(state))
        for path in partial.iterdir():
            with path.open("rb") as written:
                os.fsync(written.fileno())
    except BaseException as error:
        # On a full disk it would take the room in which run.json says what happened.
        shutil.rmtree(partial, ignore_errors=True)
        if _disk_is_full(error):
            raise UserError(
                f"the disk is full: no room for a checkpoint in {directory}; make room, and the "
                "same command goes on from the previous one"
            ) from error
        raise
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    for other in [path for path in _saved(directory) if path != target][: 1 - NUM_KEPT]:
        shutil.rmtree(other)


class CheckpointWriter:
    """Writes checkpoints while the next steps compute, one at a time.

    An 8B model's adapter with its moments is half a gigabyte. Waiting for the disk would take as
    long as several steps.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def start(self, checkpoint: Checkpoint, run: Mapping[str, str]) -> None:
        """Write the checkpoint, whose tensors nobody may change, after the one before it."""
        self.settle()
        self._writing = self._thread.submit(save_checkpoint, checkpoint, self._directory, run)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait, so that the code behind the block finds the checkpoint whole.

        The error of a full disk replaces an `OSError` of the block, which follows from it.
        """
        if kind is None:
            self.settle()
        elif self._writing is not None:
            error = self._writing.exception()
            if isinstance(error, UserError) and issubclass(kind, OSError):
                raise error

    def look(self) -> None:
        """Raise what went wrong so far, without waiting; see `save_checkpoint`."""
        if self._writing is not None and self._writing.done():
            self.settle()

    def settle(self) -> None:
        """Wait until the last one is on the disk, and raise what went wrong."""
        if self._writing is not None:
            wait([self._writing])  # interrupted, it is still ours to wait for
            done, self._writing = self._writing, None
            done.result()


def recorded_checkpoint(
    directory: Path, run: Mapping[str, str], order: Sequence[str]
) -> Checkpoint | None:
    """Return the checkpoint that a run's directory continues from, if its steps are recorded.

    Args:
        directory: Of the run, with metrics.jsonl and order.jsonl.
        run: See `load_checkpoint`, which also says what is raised.
        order: The planned ids.
    """
    saved = load_checkpoint(directory / "checkpoints", run)
    if saved is None:
        return None
    num_recorded = recorded_steps(directory, order)
    if num_recorded >= saved.step:
        return saved
    log.warning(
        "metrics.jsonl or order.jsonl ends at step %d, before the checkpoint of step %d: "
        "what is lost is trained again, from the beginning",
        *(num_recorded, saved.step),
    )
    return None


def load_checkpoint(directory: Path, run: Mapping[str, str]) -> Checkpoint | None:
    """Return the newest checkpoint that can be read, or None where there is none at all.

    Args:
        directory: Where they are.
        run: What the checkpoint must have been written with; see `save_checkpoint`.

    Raises:
        UserError: If it belongs to another run, or if none of them can be read.
    """
    for leftover in directory.glob(".partial-*"):
        shutil.rmtree(leftover)
    saved = _saved(directory)
    for path in reversed(saved):
        try:
            return _read(path, run)
        except UserError:
            raise
        except Exception as error:  # of JSON, safetensors, pickle, zip or the disk
            log.warning("%s is damaged (%s: %s)", path, type(error).__name__, error)
    if saved:
        raise UserError(
            f"no checkpoint in {directory} can be read; say fresh=true to start over (the old run "
            "is kept aside)"
        )
    return None


def _read(path: Path, run: Mapping[str, str]) -> Checkpoint:
    import torch
    from safetensors.torch import load_file

    state: Mapping[str, Any] = json.loads((path / "state.json").read_text())
    step = int(state["step"])
    if path.name != _name(step):
        raise ValueError(f"its state.json is that of step {step}")
    checkpoint = Checkpoint(
        step=step,
        adapter=load_file(path / "adapter.safetensors"),
        optimizer=torch.load(path / "optimizer.pt", weights_only=True, map_location="cpu"),
    )
    for name, value in run.items():
        if state.get(name, value) != value:
            raise UserError(
                f"{path} was written with another {name} ({state[name]} -> {value}); continuing "
                "would mix two runs. Say fresh=true to start over (the old run is kept aside)"
            )
    return checkpoint


def _disk_is_full(error: BaseException | None) -> bool:
    """Return whether that is behind it: PyTorch and safetensors wrap the system's own error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(f"os error {number}" in str(error) for number in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _saved(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("step-*") if path.is_dir())
