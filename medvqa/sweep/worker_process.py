"""The scheduler's side of a worker process: jobs in, answers out, and its end."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medvqa.config.machine import process_environment
from medvqa.sweep.job import Job

WORKER = (sys.executable, "-m", "medvqa.sweep.worker")
EARLY = "--early"  # imports transformers before there is a job; Unsloth must come before it
GRACE_S = 20.0  # for a worker to mark its run as interrupted and leave


class WorkerProcess:
    """One process that runs jobs for one slot."""

    def __init__(self, slot: str, command: Sequence[str], console: Path, *, num_slots: int) -> None:
        with console.open("ab") as log:  # until the worker opens each job's own
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=process_environment(num_slots, gpus=slot),
                # Ctrl-C reaches the launcher, which ends the workers in order.
                start_new_session=True,
            )
        self.pid, self.slot = self._process.pid, slot
        self._buffer = b""

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def start(self, job: Job) -> None:
        """Send the job; a worker that has died meanwhile shows in `answer`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{job.as_line()}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            pass

    def answer(self, timeout_s: float) -> Mapping[str, Any] | None:
        """Return the worker's answer, `{}` if it died, or None if there is none yet."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout_s)[0]:
            return None
        chunk = os.read(self._process.stdout.fileno(), 65536)
        self._buffer += chunk
        if b"\n" in self._buffer:
            line, _, self._buffer = self._buffer.partition(b"\n")
            values: Mapping[str, Any] = json.loads(line)
            return values
        return None if chunk else {}

    def exit_code(self) -> int:
        """Wait for the process to end; negative for a signal."""
        return self._process.wait()

    def end(self, *, now: bool = False) -> None:
        """Close the worker; `now` interrupts its job, and kills it if it does not listen."""
        assert self._process.stdin is not None
        if now and self.is_alive:
            self._signal(signal.SIGTERM)
        try:
            if not now:
                self._process.stdin.close()
            self._process.wait(GRACE_S)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            pass
        if self.is_alive:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
