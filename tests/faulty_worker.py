"""A worker whose jobs misbehave as `seed` says; the rest is the real one."""

import os
import resource
import signal
import sys
import time

from medvqa.sweep.job import Job
from medvqa.sweep.worker import serve

RAISES, KILLED, EXITS, HANGS, NO_MEMORY, LEAKS = 13, 9, 5, 7, 12, 3


def run_job(job: Job) -> bool:
    """Leave the process's id, then do what the seed stands for."""
    (job.directory / "pid").write_text(str(os.getpid()))
    seed = job.config["seed"]
    if seed == RAISES:
        raise ValueError("boom\nwith more lines")
    if seed == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    if seed == EXITS:
        sys.exit(3)
    if seed == HANGS:
        time.sleep(600)
    if seed == NO_MEMORY:
        resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
        sys.stdout.write(f"{len(bytearray(2**31))} bytes were there\n")
    sys.stdout.write(f"seed {seed} on GPU {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
    return bool(seed != LEAKS)


if __name__ == "__main__":
    serve(run_job, sys.stdin, os.fdopen(os.dup(1), "w"))
