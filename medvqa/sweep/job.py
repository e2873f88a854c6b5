"""One cell of a grid: what it is, where it writes, and how it stands."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from medvqa.config.errors import UserError
from medvqa.config.identity import run_id
from medvqa.tracking import record
from medvqa.tracking.identity import other_settings

CONSOLE = "console.log"


class State(Enum):
    """How a job stands."""

    waiting = "waiting"
    running = "running"
    finished = "finished"
    failed = "failed"  # raised, or left with an exit code
    diverged = "diverged"  # a loss is not finite; only other settings can help
    killed = "killed"  # by a signal; where nobody sent one, the system was out of memory
    timed_out = "timed_out"
    interrupted = "interrupted"  # the launcher ended it; the same command goes on


@dataclass(frozen=True, kw_only=True)
class Job:
    """One cell.

    Attributes:
        number: Position in the grid, from 0.
        overrides: What the command line says about this cell.
        name: What sets it apart from the others, for W&B.
        config: The resolved config as plain values.
        run_id: Hash of the config as far as it can change results; a finished run with this
            id is not done again.
        sweep: Name that groups the cells in W&B.
    """

    number: int
    overrides: tuple[str, ...]
    name: str
    directory: Path
    config: Mapping[str, Any]
    run_id: str
    sweep: str

    @property
    def engine(self) -> str:
        """Equal for jobs that one loaded model can serve."""
        training = self.config["training"]
        # With another engine the adapter may compute in another type.
        settings = {name: training[name] for name in ("gradient_checkpointing", "engine")}
        return run_id(
            {"model": self.config["model"], "lora": self.config["lora"], "training": settings}
        )

    @property
    def num_gpus(self) -> int:
        """Slots that the job takes at once."""
        return int(self.config["training"].get("gpus", 1))

    @property
    def is_finished(self) -> bool:
        """Whether this very run has been finished before."""
        return self.ended_as is State.finished

    @property
    def ended_as(self) -> State | None:
        """`finished` or `diverged` if this very run is recorded as that; else None."""
        stored = run_json(self.directory)
        is_ended = stored.get("state") in (record.FINISHED, record.DIVERGED)
        is_same = is_ended and stored.get("run_id") == self.recorded_id
        return State(stored["state"]) if is_same else None

    @property
    def recorded_id(self) -> str:
        """The id in run.json if this very run is recorded there, else the job's own.

        The same settings have another id in a version that knows more settings.
        """
        stored = run_json(self.directory)
        if stored and not any(other_settings(stored["config"], self.config)):
            return str(stored.get("run_id", self.run_id))
        return self.run_id

    def settings(self) -> dict[str, Any]:
        """Return what run.json keeps of the command."""
        return {
            "config": self.config,
            "overrides": list(self.overrides),
            "run_id": self.run_id,
            "sweep": self.sweep,
            "name": self.name,
        }

    def as_line(self) -> str:
        """Return the job as the line of JSON that a worker reads; no file ever holds it."""
        return json.dumps(asdict(self) | {"directory": str(self.directory)})


def job_of_line(line: str) -> Job:
    """Return the job that `Job.as_line` wrote."""
    values = json.loads(line)
    values |= {"directory": Path(values["directory"]), "overrides": tuple(values["overrides"])}
    return Job(**values)


@dataclass(frozen=True, kw_only=True)
class Status:
    """What status.json says about a job; the launcher alone writes it.

    Attributes:
        state: Of the job; run.json has the state of the run.
        pid: Process that runs the job.
        slot: GPU index, several with commas, or "" on a CPU.
        seconds: Wall time of the last attempt, by a clock that never goes backwards.
        exit_code: Negative for a signal; None while it runs.
        error: One line; the job's console.log has all.
    """

    state: State
    slot: str = ""
    pid: int | None = None
    seconds: float | None = None
    exit_code: int | None = None
    error: str | None = None

    def write(self, directory: Path) -> None:
        """Write status.json."""
        values = asdict(self) | {"state": self.state.value}
        record.write_json(directory / "status.json", values)


ShowChange = Callable[[Job, Status], None]


def read_status(directory: Path) -> Status:
    """Return the job's status; a missing or damaged file counts as waiting.

    Only run.json decides what is done, so nothing is lost with a status.
    """
    try:
        values = record.read_json(directory / "status.json")
        return Status(**values | {"state": State(values["state"])})
    except (UserError, KeyError, TypeError, ValueError):
        return Status(state=State.waiting)


def run_json(directory: Path) -> dict[str, Any]:
    """Return run.json, or an empty record where it is missing or damaged."""
    try:
        return record.read_run(directory)
    except UserError:
        return {}


def tail(path: Path, num_lines: int) -> Sequence[str]:
    """Return the last lines of a log that are not blank."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 20_000))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return [line for line in lines if line.strip()][-num_lines:]
