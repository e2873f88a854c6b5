"""The front process of a run on several GPUs: starts torchrun once all is settled, and outlives it.

    front (holds the run's lock) -> `medvqa.training.torchrun` -> a rank_worker per GPU

The standard input of all processes below the front process is a pipe that nobody writes to. The
pipe ends when the front process ends, however that dies. Then the ranks exit at once.
"""

import contextlib
import logging
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from medvqa.config.errors import DivergenceError, RankError, UserError
from medvqa.config.machine import leave_at_once, process_environment
from medvqa.tracking import record
from medvqa.training.ranks import TIMES_OUTSIDE

GRACE_S = 15.0  # for the first rank to mark its run as interrupted
SHOWN_LINES = 20
# How nccl's watchdog and gloo end a wait that was too long.
TIMEOUTS = ("Watchdog caught collective operation timeout", "Timed out waiting")
MISTAKES = {kind.__name__: kind for kind in (DivergenceError, UserError)}  # the narrower first


def run_ranks(num_ranks: int, *, directory: Path, settings: Mapping[str, Any]) -> None:
    """Run the configured run in so many processes; none is left when this returns or raises.

    Args:
        num_ranks: Each finds its own GPU.
        directory: Run directory, which the caller has locked.
        settings: See `medvqa.run.run`; the ranks read the config here and compose nothing.

    Raises:
        UserError: What a rank says about the input.
        RankError: Naming the rank that failed first, and why.
    """
    with tempfile.TemporaryDirectory(prefix="medvqa-", ignore_cleanup_errors=True) as name:
        place = Path(name)
        job = {
            "directory": str(directory),
            "settings": settings,
            "command": sys.argv,
            "log_formats": _log_formats(),
        }
        record.write_json(place / "job.json", job)
        try:
            code = _start(place, num_ranks)
            if code != 0:
                raise _failure(place, num_ranks, code)
        except BaseException as error:
            _mark_ended(directory / "run.json", error)
            raise


def _log_formats() -> dict[str, str]:
    """Return where this process's log goes, by the format; the first rank writes there, too."""
    handlers = logging.getLogger().handlers
    return {
        handler.baseFilename if isinstance(handler, logging.FileHandler) else "": (
            getattr(handler.formatter, "_fmt", None) or logging.BASIC_FORMAT
        )
        for handler in handlers
        if isinstance(handler, logging.StreamHandler)
    }


def _start(place: Path, num_ranks: int) -> int:
    """Return torchrun's exit code."""
    with (place / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "medvqa.training.torchrun", str(place), str(num_ranks)],
            stdin=subprocess.PIPE,
            stdout=2,  # for the first rank; results are printed here
            stderr=log,
            env=process_environment(num_ranks),
            # Ctrl-C reaches this process, which ends the others in order.
            start_new_session=True,
        )
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            process.kill()
            process.wait()
        assert process.stdin is not None
        process.stdin.close()


def _failure(place: Path, num_ranks: int, exit_code: int) -> Exception:
    """Return what went wrong first: a kill by a signal, else the earliest exception of a rank.

    A rank that loses its partner fails as well, so the last one to fail is not to blame.
    """
    codes = record.read_json(place / "exit_codes.json")
    log = (place / "log").read_text(encoding="utf-8", errors="replace")
    errors = [record.read_json(path) for path in place.glob("error-*.json")]
    if any(words in text for words in TIMEOUTS for text in (log, *(e["text"] for e in errors))):
        return RankError(
            f"one of {num_ranks} ranks hangs: another one waited for it longer than "
            f"training.rank_timeout_s (outside a step, {TIMES_OUTSIDE} times that)"
        )
    for name, code in codes.items():
        if code < 0 and -code != signal.SIGTERM:  # which torchrun sends to the others
            reason = "; was the memory full?" if -code == signal.SIGKILL else ""
            signal_name = signal.Signals(-code).name
            return RankError(f"rank {name} of {num_ranks} was killed by {signal_name}{reason}")
    if not errors:
        tail = "\n".join(log.splitlines()[-SHOWN_LINES:])
        return RankError(f"torchrun left with exit code {exit_code}:\n{tail}")
    first = min(errors, key=lambda error: error["time"])
    if first["kind"] in MISTAKES:
        return MISTAKES[first["kind"]](first["text"])
    return RankError(f"rank {first['rank']} of {num_ranks}: {first['text']}\n{first['traceback']}")


def _mark_ended(path: Path, error: BaseException) -> None:
    """Say in run.json what the first rank could not know of, or had no time to say."""
    values = record.read_json(path)
    if values:
        text = f"{type(error).__name__}: {error}".partition("\n")[0]
        record.write_json(path, values | {"state": record.state_after(error), "error": text})


def main() -> None:
    """Run torchrun; write the ranks' exit codes to a file instead of prose to the console."""
    leave_at_once()
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    place, num_ranks = sys.argv[1:]
    torchrun: Any = import_module("torch.distributed.run")
    arguments = [
        "--standalone",
        f"--nproc-per-node={num_ranks}",
        "-m",
        "medvqa.sweep.rank_worker",
        place,
    ]
    try:
        torchrun.run(torchrun.parse_args(arguments))
    except ChildFailedError as error:
        codes = {str(rank): failure.exitcode for rank, failure in error.failures.items()}
        record.write_json(Path(place) / "exit_codes.json", codes)
        sys.exit(1)


if __name__ == "__main__":
    main()
