"""The default launcher for `-m`: jobs on a queue of this machine's GPUs."""

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from medvqa.config.errors import UserError
from medvqa.config.machine import num_cuda_devices
from medvqa.sweep.job import Job, ShowChange, Status
from medvqa.sweep.launcher import GridLauncher, mark_waiting
from medvqa.sweep.scheduler import Scheduler
from medvqa.sweep.worker_process import EARLY, WORKER, WorkerProcess

log = logging.getLogger(__name__)


class IsolatedLauncher(GridLauncher):
    """Runs each job in a process of its own, or jobs of one model in one warm process."""

    def __init__(
        self,
        slots: str | int | Sequence[int],
        warm: bool,
        timeout_minutes: float | None,
        fail_fast: bool,
    ) -> None:
        self.slots = find_slots(slots)
        self.warm = warm
        self.timeout_s = None if timeout_minutes is None else 60 * timeout_minutes
        self.fail_fast = fail_fast
        self.early: list[WorkerProcess] = []

    def start_early(self, jobs: Sequence[Job], stack: ExitStack) -> None:
        """Let each slot's worker import its libraries, if every job is new and takes one slot."""
        places = {job.directory for job in jobs}
        backends = {job.config["model"]["backend"] for job in jobs}
        is_new = not any((place / "run.json").exists() for place in places)
        if not is_new or "unsloth" in backends or any(job.num_gpus > 1 for job in jobs):
            return
        command, nowhere, slots = (*WORKER, EARLY), Path(os.devnull), self.slots[: len(places)]
        for slot in slots:
            worker = WorkerProcess(slot, command, nowhere, num_slots=len(slots))
            stack.callback(worker.end, now=True)
            self.early.append(worker)

    def run_jobs(
        self, jobs: Sequence[Job], sweep: Path, show_change: ShowChange
    ) -> dict[int, Status]:
        """Run the jobs on the slots."""
        mark_waiting(jobs)
        slots = self.slots[: max(1, sum(job.num_gpus for job in jobs))]
        log.info("%d jobs on %s, in %s", len(jobs), describe_slots(slots), sweep)
        scheduler = Scheduler(
            slots, self.warm, self.timeout_s, self.fail_fast, show_change, early=self.early
        )
        return scheduler.run(jobs)


def find_slots(slots: str | int | Sequence[int]) -> list[str]:
    """Return one slot per worker: the GPUs that may be used, or one slot on the CPU.

    Args:
        slots: `auto`, a number of CPU slots, or a list of GPU indices.
    """
    if slots == "auto":
        num_gpus = num_cuda_devices(os.environ)
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        return (visible or [str(index) for index in range(num_gpus)]) if num_gpus else [""]
    if isinstance(slots, str) or not slots or (isinstance(slots, int) and slots < 1):
        raise UserError(
            f"hydra.launcher.slots must be auto, a number from 1 or a list of GPUs, got {slots}"
        )
    return [""] * slots if isinstance(slots, int) else [str(index) for index in slots]


def describe_slots(slots: Sequence[str]) -> str:
    """Return for example `GPU 0, 1`."""
    return f"GPU {', '.join(slots)}" if slots[0] else f"{len(slots)} CPU slot(s)"
