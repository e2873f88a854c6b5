"""The process that runs jobs: `python -m medvqa.sweep.worker`, one line of JSON per job on stdin.

It answers one JSON line per job on stdout. The job's own output goes to its console.log. When
stdin ends, the launcher is done or dead, and the worker exits at once. The same command continues
the worker's run from the last checkpoint.
"""

import contextlib
import json
import logging
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from medvqa.config.errors import DivergenceError, UserError
from medvqa.config.machine import leave_at_once, take_gpu_memory_in_pages
from medvqa.config.secrets import MaskingFormatter, masked_text
from medvqa.config.typed import typed
from medvqa.sweep.job import CONSOLE, Job, State, job_of_line
from medvqa.sweep.worker_process import EARLY

log = logging.getLogger("medvqa")

RunJob = Callable[[Job], bool]  # whether the process may run another job
FORMAT = "[%(asctime)s] %(message)s"


def serve(run_job: RunJob, commands: IO[str], answers: IO[str]) -> None:
    """Run the jobs that come as lines, until one fails or the lines end."""
    signal.signal(signal.SIGTERM, _interrupt)
    # Slurm's warning reaches all processes of a job; whoever started this one acts on it.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    lines: queue.Queue[str] = queue.Queue()
    busy = threading.Event()

    def listen() -> None:
        for line in commands:
            busy.set()  # here: a launcher may die before the job is taken up
            lines.put(line.strip())
        if busy.is_set():
            os._exit(1)  # nobody waits for the result
        lines.put("")

    threading.Thread(target=listen, daemon=True).start()
    while line := lines.get():
        state, error, goes_on = _run_one(run_job, job_of_line(line))
        busy.clear()
        answer = {"state": state.value, "error": error, "goes_on": goes_on}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if not goes_on:  # what a failed run leaves in memory must not reach the next one
            break


def _interrupt(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut the first one's end
    raise KeyboardInterrupt


def _run_one(run_job: RunJob, job: Job) -> tuple[State, str | None, bool]:
    with _console(job.directory / CONSOLE):
        try:
            return State.finished, None, run_job(job)
        except KeyboardInterrupt:
            return State.interrupted, "interrupted", False
        except UserError as error:
            text = masked_text(str(error))
            sys.stderr.write(f"medvqa: {text}\n")
            state = State.diverged if isinstance(error, DivergenceError) else State.failed
            return state, text, False
        except SystemExit as error:
            return State.failed, f"left with exit code {error.code}", False
        except BaseException as error:
            sys.stderr.write(masked_text(traceback.format_exc()))
            text = masked_text(f"{type(error).__name__}: {error}")
            return State.failed, text.splitlines()[0], False


@contextlib.contextmanager
def _console(path: Path) -> Iterator[None]:
    """Send everything that is printed, by libraries in C as well, to the file."""
    with path.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(MaskingFormatter(FORMAT))
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        sys.stdout.flush()
        sys.stderr.flush()


class Runner:
    """Runs one job after another and keeps base model and rows between them."""

    def __init__(self) -> None:
        self._models: Any = None

    def __call__(self, job: Job) -> bool:
        """Run the job as `python train.py` would; return whether its memory was given back."""
        from medvqa.evaluation.results import show_results
        from medvqa.run import ProcessState, run
        from medvqa.sweep.warm import WarmModels

        self._models = self._models or WarmModels()
        self._models.expect(job.config["data"])
        state = ProcessState(self._models.load, self._models.patches, self._models.cache)
        evaluations = run(typed(job.config), job.directory, job.settings(), state)
        show_results(evaluations, job.directory)
        return bool(self._models.release())


def main() -> None:
    """Take the real stdout for answers; jobs print into their own logs."""
    leave_at_once()
    take_gpu_memory_in_pages()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    if sys.argv[1:] == [EARLY]:
        os.dup2(2, 1)  # what libraries print is no answer
        with contextlib.suppress(Exception):  # the first job imports again, and logs the error
            import_module("medvqa.models.load").import_alone()
    serve(Runner(), sys.stdin, answers)


if __name__ == "__main__":
    main()
