"""One process of a run on several GPUs, started by torchrun.

    python -m medvqa.sweep.rank_worker PLACE

Every rank runs the same code. Only this module treats the first rank differently: it writes into
the run's directory, tracks and logs. The other ranks write into a directory that is deleted, track
nothing and log nothing.
"""

import logging
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from medvqa.config.errors import UserError
from medvqa.config.machine import leave_at_once
from medvqa.config.typed import typed
from medvqa.models.load import load_in_own_process
from medvqa.run import ProcessState, run_rank
from medvqa.tracking import record
from medvqa.tracking.files import directory_lock
from medvqa.training.ranks import join, leave
from medvqa.training.torchrun import MISTAKES

GRACE_S = 5.0  # to leave in order after SIGTERM


def main() -> None:
    """Do this rank's part; leave an error where the front process finds it."""
    leave_at_once()
    place, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    signal.signal(signal.SIGTERM, _interrupt)
    _leave_with_the_others()
    job = record.read_json(place / "job.json")
    sys.argv = job["command"]  # what run.json and W&B keep
    try:
        if rank == 0:
            _speak(job["log_formats"])
            directory = Path(job["directory"])
            # The lock of a first rank that is still on its way out after its front process died.
            with directory_lock(directory / "checkpoints", patience_s=2 * GRACE_S):
                _run(directory, job["settings"])
        else:
            _be_silent()
            _run(place / f"rank-{rank}", job["settings"])
    except BaseException as error:
        _tell(place / f"error-{rank}.json", rank, error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # an orderly exit could wait for the others for ever


def _run(directory: Path, settings: Mapping[str, Any]) -> None:
    config = typed(settings["config"])
    ranks = join(config.model.device, config.training.rank_timeout_s)
    run_rank(config, directory, settings, ProcessState(load_in_own_process), ranks)
    leave()


def _speak(log_formats: Mapping[str, str]) -> None:
    """Log where the front process does; torchrun's and nccl's own words stay in their log."""
    sys.stderr = sys.stdout
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    logging.getLogger("medvqa").setLevel(logging.INFO)
    for path, text in log_formats.items():
        handler = logging.FileHandler(path) if path else logging.StreamHandler()
        handler.setFormatter(logging.Formatter(text))
        root.addHandler(handler)


def _be_silent() -> None:
    os.dup2(2, 1)
    os.environ["WANDB_MODE"] = "disabled"


def _interrupt(*_: object) -> None:
    if sys.exc_info()[0] is None:  # else this process is about to leave, and says so to W&B
        raise KeyboardInterrupt


def _leave_with_the_others() -> None:
    """End this process when the front process is gone, or soon after SIGTERM.

    A thread, because the main one may be deaf: waiting on a GPU for a rank that is dead.
    """
    signals, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)

    def watch() -> None:
        if signals in select.select([0, signals], [], [])[0]:
            time.sleep(GRACE_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _tell(path: Path, rank: int, error: BaseException) -> None:
    with suppress(OSError):  # the front process may be gone, and its directory with it
        record.write_json(
            path,
            {
                "rank": rank,
                "time": time.time(),
                "kind": next((kind for kind in MISTAKES if isinstance(error, MISTAKES[kind])), ""),
                "text": str(error)
                if isinstance(error, UserError)
                else f"{type(error).__name__}: {error}",
                "traceback": "".join(traceback.format_exception(error)),
            },
        )


if __name__ == "__main__":
    main()
