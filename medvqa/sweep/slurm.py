"""`hydra/launcher=slurm`: one Slurm job a cell, through submitit, with the books of every grid.

Options are those of Hydra's submitit launcher. Three things are ours, because there they fail: the
wait asks `squeue`, as submitit waits for ever where Slurm keeps no accounts (submitit issue 1720);
a cell that fails does not end the wait for the others; and a launcher that comes back waits for
what is queued already in place of queueing it twice.
"""

import logging
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from medvqa.config.errors import UserError
from medvqa.sweep.job import Job, State, Status, read_status
from medvqa.sweep.launcher import GridLauncher, ShowChange, mark_waiting
from medvqa.sweep.node import last_status, run_on_node
from medvqa.sweep.scheduler import python_path
from medvqa.tracking import record

log = logging.getLogger(__name__)

POLL_S = 1.0
QUERY_S = 5.0
LOST_AFTER = 2  # queries in a row that do not list a job


class NodeJob:
    """What submitit takes to the machine; `checkpoint` lets it put the job back into the queue."""

    def __call__(self, directory: str) -> str:
        """Run the job; see `run_on_node`.

        Raises:
            RuntimeError: If it did not finish, so that Slurm's own tools show a failed job.
        """
        state = run_on_node(directory)
        if state != State.finished.value:
            raise RuntimeError(f"{directory}: {state}")
        return state

    def checkpoint(self, directory: str) -> Any:
        """Return what is to be run after a preemption or a timeout: the same, which goes on."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, directory)


class SlurmLauncher(GridLauncher):
    """Queues the jobs and waits until Slurm has done with them."""

    runs_here = False

    def __init__(self, **options: Any) -> None:
        self._options: dict[str, Any] = {
            name: OmegaConf.to_container(value, resolve=True)
            if OmegaConf.is_config(value)
            else value
            for name, value in options.items()
        }

    def check_place(self) -> None:
        """Raise a `UserError` if Slurm does not answer."""
        _listed()

    def run_jobs(
        self, jobs: Sequence[Job], sweep: Path, show_change: ShowChange
    ) -> dict[int, Status]:
        """Queue what is not queued; Ctrl-C cancels all, and leaves it so that it can go on."""
        listed = _listed()
        queued = {job.number: name for job in jobs if (name := _queued_as(job)) in listed}
        new = [job for job in jobs if job.number not in queued]
        mark_waiting(new)
        if queued:
            log.info("%d jobs are in Slurm's queue already", len(queued))
        try:
            if new:
                queued |= self._submit(new)
            return Wait(jobs, queued, show_change).until_over()
        except KeyboardInterrupt:
            subprocess.run(["scancel", *queued.values()], check=False)
            Wait(jobs, queued, show_change).until_over()
            raise

    def _submit(self, jobs: Sequence[Job]) -> dict[int, str]:
        import submitit
        from hydra_plugins.hydra_submitit_launcher.config import (  # type: ignore[import-untyped]
            BaseQueueConf,
        )

        options = dict(self._options)
        executor = submitit.AutoExecutor(
            cluster="slurm",
            folder=options.pop("submitit_folder"),
            slurm_max_num_timeout=options.pop("max_num_timeout"),
        )
        common = BaseQueueConf.__dataclass_fields__
        executor.update_parameters(
            **{name if name in common else f"slurm_{name}": v for name, v in options.items()}
        )
        with _importable():
            submitted = executor.map_array(NodeJob(), [str(job.directory) for job in jobs])
        queued = {job.number: one.job_id for job, one in zip(jobs, submitted, strict=True)}
        for job in jobs:
            record.write_json(job.directory / "slurm.json", {"id": queued[job.number]})
        log.info("%d jobs queued in Slurm: %s", len(jobs), ", ".join(queued.values()))
        return queued


def _listed() -> set[str]:
    listed = squeue()
    if listed is None:
        raise UserError("hydra/launcher=slurm, but `squeue` does not answer on this machine")
    return listed


def _queued_as(job: Job) -> str:
    try:
        return str(record.read_json(job.directory / "slurm.json").get("id", ""))
    except UserError:  # damaged: queued anew, and the job's lock keeps two from one directory
        return ""


@contextmanager
def _importable() -> Iterator[None]:
    """Let `sbatch` take along where this package is."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = python_path()
    try:
        yield
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


def squeue() -> set[str] | None:
    """Return the ids of the user's jobs that wait, run or end; None if Slurm does not answer."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return set(answer.stdout.split()) if answer.returncode == 0 else None


@dataclass
class Wait:
    """Waits until no job is queued any more, and shows what the machines write meanwhile.

    Attributes:
        queued: Slurm's id of each job by its number.
    """

    jobs: Sequence[Job]
    queued: Mapping[int, str]
    show_change: ShowChange
    _shown: dict[int, State] = field(default_factory=dict)

    def until_over(self) -> dict[int, Status]:
        """Return how each job ended."""
        ended: dict[int, Status] = {}
        waiting = list(self.jobs)
        absent = dict.fromkeys(self.queued, 0)
        next_query = time.monotonic()
        while True:
            listed = None
            if time.monotonic() >= next_query:
                listed, next_query = squeue(), time.monotonic() + QUERY_S
            for job in waiting:
                status = read_status(job.directory)
                self._show(job, status)
                if listed is not None:
                    is_there = self.queued[job.number] in listed
                    absent[job.number] = 0 if is_there else absent[job.number] + 1
                if status.state is State.finished or absent[job.number] == LOST_AFTER:
                    lost = f"Slurm ended job {self.queued[job.number]} before it could say how"
                    ended[job.number] = last_status(job, lost=lost)
                    self._show(job, ended[job.number])
            waiting = [job for job in waiting if job.number not in ended]
            if not waiting:
                return ended
            time.sleep(POLL_S)

    def _show(self, job: Job, status: Status) -> None:
        if self._shown.get(job.number, State.waiting) is not status.state:
            self._shown[job.number] = status.state
            self.show_change(job, status)
