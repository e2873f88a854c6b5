"""One job on a machine of a cluster: in a process of its own, with the same files as anywhere."""

import os
from pathlib import Path

from medvqa.sweep.job import Job, State, Status, read_job, read_status
from medvqa.sweep.scheduler import Scheduler

OVER = (State.finished, State.failed, State.killed, State.timed_out)


def run_on_node(directory: str) -> str:
    """Run the job whose job.json is there, unless it is finished; return its state.

    The process below this one may run out of memory or crash: this one lives on to say so.
    """
    job = read_job(Path(directory))
    if job.is_finished:
        return State.finished.value
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")  # what the cluster gave
    slots = gpus.split(",") if gpus else [""] * job.num_gpus
    scheduler = Scheduler(slots, False, None, False, on_change=_write)
    return scheduler.run([job])[job.number].state.value


def _write(job: Job, status: Status) -> None:
    status.write(job.directory)


def last_status(job: Job, *, lost: str) -> Status:
    """Return how a job ended that the cluster no longer knows.

    Args:
        job: The job.
        lost: What to say where the machine could not say how it ended.
    """
    if job.is_finished:
        return Status(state=State.finished)
    status = read_status(job.directory)
    if status.state in (*OVER, State.interrupted):
        return status
    status = Status(state=State.killed, slot=status.slot, error=lost)
    status.write(job.directory)
    return status
