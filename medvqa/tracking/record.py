"""A run's files: run.json and append-only logs; written whole or not at all."""

import csv
import io
import json
import math
import os
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypedDict

from medvqa.config.earlier import upgraded
from medvqa.config.errors import DivergenceError, UserError
from medvqa.config.schema import Config
from medvqa.config.secrets import masked, masked_text, masked_values
from medvqa.tracking.environment import environment, git_state, now
from medvqa.tracking.run_file import RunFile
from medvqa.tracking.shape import FIX, DamagedError, checked

RUNNING, FINISHED, FAILED, INTERRUPTED = "running", "finished", "failed", "interrupted"
DIVERGED = "diverged"


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an object, whole or not at all.

    Not-a-number and infinity, which JSON lacks, become strings that `float()` reads back.
    """
    text = json.dumps(_finite(values), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(float(value))
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


class Configured(TypedDict):
    """What run.json and export.json have in common."""

    config: Config


def read_json(path: Path) -> dict[str, Any]:
    """Return the file's object, or an empty one where there is no file.

    Raises:
        UserError: If the file is truncated or no JSON object.
    """
    try:
        if not path.is_file():
            return {}
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged ({error}); {FIX}") from error
    if not isinstance(values, dict):
        raise DamagedError(f"{path} is damaged: no JSON object; {FIX}")
    return values


def read_run(directory: Path, name: str = "run.json") -> dict[str, Any]:
    """Return a record of a run, its config under this version's names; empty where none is.

    Raises:
        UserError: If it is damaged or no record of a run.
    """
    values = read_json(directory / name)
    if values and not isinstance(values.get("config"), Mapping):
        raise UserError(f"{directory / name} is no record of a run; give another directory")
    if not values:
        return {}
    config = upgraded(values["config"])
    checked({"config": config}, Configured, directory / name)
    return checked(values, RunFile, directory / name) | {"config": config}  # type: ignore[no-any-return]


def write_text(path: Path, text: str) -> None:
    """Write so that the file is never seen half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one line per row below a line of the first row's names; nothing without rows."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    write_text(path, text.getvalue())


class JsonLines:
    """An append-only log with one JSON object per line, each on the disk before the next step.

    A resumed run keeps the lines up to the step of its checkpoint. Later lines, a half-written last
    one included, are dropped; their steps are computed and written again.
    """

    def __init__(self, path: Path, *, keep_up_to_step: int) -> None:
        try:
            rows = [row for row in read_lines(path) if row["step"] <= keep_up_to_step]
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} has a row without its step; say fresh=true") from error
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row, which has a `step`; see `write_json` for not-a-number."""
        self._file.write(json.dumps(_finite(row), allow_nan=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Wait until all rows are on the disk, so that not even a power cut loses them."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def read_lines(path: Path, kind: Any = None, required: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Return the rows of a log, checked as `shape.checked` does where there is a kind.

    A last line that a kill cut off is left out.

    Raises:
        UserError: Naming the line, if one is damaged.
    """
    if not path.is_file():
        return []
    # Not splitlines(), which also splits at U+2028 and the like inside an answer.
    lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            place = f"{path}, line {number}"
            rows.append(row if kind is None else checked(row, kind, place, required))
        elif number < len(lines):
            raise DamagedError(f"{path}, line {number} is damaged; {FIX}")
    return rows


def state_after(error: BaseException) -> str:
    """Return the state of a run that the error ended."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return DIVERGED if isinstance(error, DivergenceError) else FAILED


class RunRecord:
    """run.json while the run goes on: each update is on the disk at once."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        before = read_json(path)
        self._path = path
        self.values: dict[str, Any] = {
            "state": RUNNING,
            "run_id": settings["run_id"],
            "config": masked_values(settings["config"]),
            "overrides": masked(settings["overrides"]),
            "command": masked(sys.argv),
            "started": before.get("started", now()),
            "num_starts": before.get("num_starts", 0) + 1,
            "git": git_state(Path(__file__).parent),
            "environment": environment(),
            # Wall seconds of each phase, all starts of a resumed run together.
            "seconds": before.get("seconds", {}),
            "evaluation_seconds": before.get("evaluation_seconds", {}),
            # What this start compares again; a kill before that must not lose it.
            **{name: before[name] for name in ("rows", "code") if name in before},
        }
        self._hydra_files: Mapping[str, str] = settings.get("hydra", {})

    def update(self, **values: Any) -> None:
        """Add or replace top-level entries."""
        self.values.update(values)
        write_json(self._path, self.values)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the wall time of the block to the phase; nested phases count for themselves too."""
        started = time.monotonic()
        try:
            yield
        finally:
            seconds = self.values["seconds"]
            seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - started, 3)
            self.update()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep the state right however the block ends."""
        self.update()
        for name, text in self._hydra_files.items():
            write_text(self._path.parent / ".hydra" / name, text)
        try:
            yield
        except BaseException as error:
            text = masked_text(f"{type(error).__name__}: {error}")
            self.update(state=state_after(error), error=text, ended=now())
            raise

    def finish(self, **values: Any) -> None:
        """Write the last entries and the state that makes the same command only show results."""
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024
        )
        self.values.pop("error", None)
        self.update(state=FINISHED, ended=now(), peak_memory_bytes=peak_bytes, **values)
