"""A grid's jobs on other machines: one process per job there, the wait for all of them here."""

import os
import time
from collections.abc import Callable, Sequence

from medvqa.sweep.job import Job, ShowChange, State, Status, read_status
from medvqa.sweep.scheduler import Scheduler

POLL_S = 1.0
ENDED = tuple(state for state in State if state not in (State.waiting, State.running))


def run_on_node(job: Job) -> str:
    """Run the job, unless it is finished; return its state.

    The job has a process of its own. If that crashes or runs out of memory, this one records it.
    """
    if job.is_finished:
        return State.finished.value
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")  # what the cluster gave
    slots = gpus.split(",") if gpus else [""] * job.num_gpus
    scheduler = Scheduler(slots, False, None, False, lambda job, status: None)
    return scheduler.run([job])[job.number].state.value


def wait_for(
    jobs: Sequence[Job], loss: Callable[[Job], str | None], show_change: ShowChange
) -> dict[int, Status]:
    """Wait until all jobs have ended; return how, by their numbers.

    Args:
        jobs: Jobs that the cluster has queued.
        loss: Returns None while the cluster knows the job; afterwards the message that stands if
            its machine wrote no result.
        show_change: Called when a job's state changes.
    """
    ended: dict[int, Status] = {}
    last_states: dict[int, State] = {}
    while True:
        for job in (job for job in jobs if job.number not in ended):
            lost = loss(job)  # before the files, which a job writes until it leaves
            status = read_status(job.directory)
            if status.state is State.finished or lost is not None:
                status = ended[job.number] = _last_status(job, lost or "")
            if status.state is not last_states.get(job.number, State.waiting):
                last_states[job.number] = status.state
                show_change(job, status)
        if len(ended) == len(jobs):
            return ended
        time.sleep(POLL_S)


def _last_status(job: Job, lost: str) -> Status:
    status = read_status(job.directory)
    if job.is_finished:
        return Status(state=State.finished)
    if status.state not in ENDED:
        status = Status(state=State.killed, slot=status.slot, error=lost)
        status.write(job.directory)
    return status
