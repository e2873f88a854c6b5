"""`hydra/launcher=slurm`: one Slurm job per job of the grid, through submitit.

The options are those of Hydra's submitit launcher, which fails in three places. It waits for ever
where Slurm keeps no accounts (submitit issue 1720); here the wait asks `squeue`. It ends the wait
for all cells when one fails. And it queues a cell twice when the same command is given again.
"""

import logging
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from medvqa.config.errors import UserError
from medvqa.config.machine import python_path
from medvqa.sweep.cluster import run_on_node, wait_for
from medvqa.sweep.job import Job, ShowChange, State, Status
from medvqa.sweep.launcher import GridLauncher, mark_waiting
from medvqa.tracking import record

log = logging.getLogger(__name__)

QUERY_S = 5.0
AGAIN_S = 1.0  # after a query that does not list a job
LOST_AFTER = 2  # such queries in a row


class NodeJob:
    """The callable that submitit runs on the machine; `checkpoint` lets it queue the job again."""

    def __call__(self, job: Job) -> str:
        """Run the job; see `run_on_node`.

        Raises:
            RuntimeError: If it did not finish, so that Slurm's own tools show a failed job.
        """
        state = run_on_node(job)
        if state != State.finished.value:
            raise RuntimeError(f"{job.directory}: {state}")
        return state

    def checkpoint(self, job: Job) -> Any:
        """Return the work after a preemption or a timeout: the same job, from its checkpoint."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, job)


class SlurmLauncher(GridLauncher):
    """Queues the jobs and waits until Slurm has none of them."""

    runs_here = False

    def __init__(self, **options: Any) -> None:
        self._options: Any = OmegaConf.to_container(OmegaConf.create(options), resolve=True)

    def check_place(self) -> None:
        """Raise a `UserError` if Slurm does not answer."""
        if squeue() is None:
            raise UserError("hydra/launcher=slurm, but `squeue` does not answer on this machine")

    def run_jobs(
        self, jobs: Sequence[Job], sweep: Path, show_change: ShowChange
    ) -> dict[int, Status]:
        """Queue the jobs that are not queued; Ctrl-C cancels all of them in order."""
        listed = squeue() or set()
        ids = {job.number: name for job in jobs if (name := _queued_as(job)) in listed}
        new = [job for job in jobs if job.number not in ids]
        mark_waiting(new)
        if ids:
            log.info("%d jobs are in Slurm's queue already", len(ids))
        try:
            if new:
                ids |= self._submit(new)
            return wait_for(jobs, Queue(ids).loss, show_change)
        except KeyboardInterrupt:
            subprocess.run(["scancel", *ids.values()], check=False)
            wait_for(jobs, Queue(ids).loss, show_change)
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
        os.environ["PYTHONPATH"] = python_path()  # `sbatch` takes it along
        submitted = executor.map_array(NodeJob(), jobs)
        ids = {job.number: one.job_id for job, one in zip(jobs, submitted, strict=True)}
        for job in jobs:
            record.write_json(job.directory / "slurm.json", {"id": ids[job.number]})
        log.info("%d jobs queued in Slurm: %s", len(jobs), ", ".join(ids.values()))
        return ids


def _queued_as(job: Job) -> str:
    try:
        return str(record.read_json(job.directory / "slurm.json").get("id", ""))
    except UserError:  # damaged: queued anew, and the job's lock keeps two from one directory
        return ""


def squeue() -> set[str] | None:
    """Return the ids of the user's jobs that wait, run or end; None if Slurm does not answer."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return set(answer.stdout.split()) if answer.returncode == 0 else None


class Queue:
    """Slurm's queue, asked every few seconds.

    Args:
        ids: Slurm's id of each job by its number.
    """

    def __init__(self, ids: Mapping[int, str]) -> None:
        self._ids = ids
        self._absences = dict.fromkeys(ids, 0)
        self._next_query = 0.0

    def loss(self, job: Job) -> str | None:
        """Return None while the job is queued, else the message for a job without a result."""
        if time.monotonic() >= self._next_query:
            listed = squeue()
            if listed is not None:
                for number, name in self._ids.items():
                    self._absences[number] = 0 if name in listed else self._absences[number] + 1
            is_open = 1 in self._absences.values()
            self._next_query = time.monotonic() + (AGAIN_S if is_open else QUERY_S)
        if self._absences[job.number] < LOST_AFTER:
            return None
        return f"Slurm ended job {self._ids[job.number]} before it could write a result"
