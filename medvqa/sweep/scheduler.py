"""Jobs on slots: one worker process per slot, each with its own GPU; failures stay apart."""

import logging
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from medvqa.config.errors import UserError
from medvqa.sweep.job import CONSOLE, Job, ShowChange, State, Status
from medvqa.sweep.worker_process import WORKER, WorkerProcess

log = logging.getLogger(__name__)

POLL_S = 0.2


@dataclass
class Scheduler:
    """Runs jobs on slots.

    Attributes:
        slots: GPU indices, or "" for a slot on the CPU; a job takes `training.gpus` of them.
        warm: Whether a worker runs several jobs that one loaded model can serve, each on one GPU.
        timeout_s: Wall time after which a job is ended; None for no limit.
        fail_fast: Whether the first failure ends the other jobs, which can be continued.
        show_change: Called in the slots' threads whenever a job's status changes.
        command: Starts a worker.
        early: Workers that have been started already.
    """

    slots: Sequence[str]
    warm: bool
    timeout_s: float | None
    fail_fast: bool
    show_change: ShowChange
    command: Sequence[str] = WORKER
    early: list[WorkerProcess] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self, jobs: Sequence[Job]) -> dict[int, Status]:
        """Return the last status of each job by its number; jobs of one size run together.

        Raises:
            UserError: If a job needs more slots than there are.
            KeyboardInterrupt: After all workers have ended.
        """
        statuses = {job.number: Status(state=State.waiting) for job in jobs}
        sizes = sorted({job.num_gpus for job in jobs})
        groups = {size: grouped(self.slots, size) for size in sizes}
        if self.warm and sizes != [1]:
            log.info("jobs on several GPUs run isolated; a warm worker serves one GPU")
        for size in sizes:
            some = [job for job in jobs if job.num_gpus == size]
            self._run_together(groups[size][: len(some)], some, statuses)
        return statuses

    def _run_together(
        self, slots: Sequence[str], jobs: Sequence[Job], statuses: dict[int, Status]
    ) -> None:
        queue = list(jobs)
        with ThreadPoolExecutor(len(slots)) as pool:
            futures = [pool.submit(self._serve_slot, slot, queue, statuses) for slot in slots]
            try:
                wait(futures)
            except BaseException:
                self._stop.set()
                raise
        for future in futures:
            future.result()  # a fault of the scheduler itself

    def _take(self, waiting: list[Job], engine: str | None) -> Job | None:
        """Take the next job, if possible one that the slot's loaded model can serve."""
        with self._lock:
            if self._stop.is_set() or not waiting:
                return None
            same = [job for job in waiting if self._serves(engine, job)]
            job = (same or waiting)[0]
            waiting.remove(job)
            return job

    def _serves(self, engine: str | None, job: Job) -> bool:
        """Return whether a worker that has loaded `engine` can run the job."""
        return self.warm and job.num_gpus == 1 and job.engine == engine

    def _serve_slot(self, slot: str, waiting: list[Job], statuses: dict[int, Status]) -> None:
        worker = self._early_worker(slot)
        engine: str | None = None
        while job := self._take(waiting, engine):
            if worker is not None and engine is not None and not self._serves(engine, job):
                worker.end()
                worker = None
            worker = worker or WorkerProcess(
                slot, self.command, job.directory / CONSOLE, num_slots=len(self.slots)
            )
            engine = job.engine
            status, goes_on = self._run_job(worker, slot, job)
            statuses[job.number] = status
            if not goes_on:
                worker.end(now=True)
                worker = None
            if self.fail_fast and status.state is not State.finished:
                self._stop.set()
        if worker is not None:
            worker.end()

    def _early_worker(self, slot: str) -> WorkerProcess | None:
        """Take the slot's early worker; None if there is none, or if it has died."""
        with self._lock:
            worker = next((worker for worker in self.early if worker.slot == slot), None)
            if worker is not None:
                self.early.remove(worker)
            return worker if worker is not None and worker.is_alive else None

    def _run_job(self, worker: WorkerProcess, slot: str, job: Job) -> tuple[Status, bool]:
        started = time.monotonic()
        self._change(job, Status(state=State.running, slot=slot, pid=worker.pid))
        worker.start(job)
        answer: Mapping[str, Any] | None = None
        ended: State | None = None
        while answer is None:
            answer = worker.answer(POLL_S)
            if answer is not None or ended is not None:
                continue
            if self.timeout_s is not None and time.monotonic() - started > self.timeout_s:
                ended = State.timed_out
            elif self._stop.is_set():
                ended = State.interrupted
            if ended is not None:
                worker.end(now=True)
        code = None if answer and answer["goes_on"] else worker.exit_code()
        status = Status(
            slot=slot,
            pid=worker.pid,
            seconds=round(time.monotonic() - started, 2),
            exit_code=code,
            **_outcome(answer, ended, code, self.timeout_s),
        )
        self._change(job, status)
        return status, bool(answer and answer["goes_on"])

    def _change(self, job: Job, status: Status) -> None:
        status.write(job.directory)
        self.show_change(job, status)


def grouped(slots: Sequence[str], size: int) -> list[str]:
    """Return the slots joined to groups of so many, as CUDA_VISIBLE_DEVICES takes them.

    Raises:
        UserError: If there are not enough for one group.
    """
    if size > len(slots):
        more = f"hydra.launcher.slots={size}" if "" in slots else "fewer GPUs per job"
        raise UserError(
            f"training.gpus={size} takes {size} slots, but there are {len(slots)}; use {more}"
        )
    starts = range(0, len(slots) - size + 1, size)
    return [",".join(filter(None, slots[start : start + size])) for start in starts]


def _outcome(
    answer: Mapping[str, Any], ended: State | None, code: int | None, timeout_s: float | None
) -> dict[str, Any]:
    if answer and State(answer["state"]) is State.finished:
        return {"state": State.finished}
    if ended is State.timed_out:
        return {"state": ended, "error": f"ran longer than {timeout_s:g} s"}
    if ended is not None:
        return {"state": ended, "error": "ended by the launcher"}
    if answer:
        return {"state": State(answer["state"]), "error": answer["error"]}
    assert code is not None
    if code < 0:
        name = signal.Signals(-code).name
        reason = "; was the memory full?" if -code == signal.SIGKILL else ""
        return {"state": State.killed, "error": f"killed by {name}{reason}"}
    return {"state": State.failed, "error": f"the process left with exit code {code}"}
