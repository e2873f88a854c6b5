"""The grid while it runs and after: one row per job, read from the jobs' files alone."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

from omegaconf import OmegaConf

from medvqa.config.errors import UserError
from medvqa.config.secrets import masked, masked_values
from medvqa.sweep.job import Job, State, read_status, run_json, tail
from medvqa.tracking import record
from medvqa.tracking.files import is_locked
from medvqa.tracking.shape import misfit

MULTIRUN = "multirun.yaml"
MAX_NAME = 255  # characters of a directory's own name
OTHER_RUN = "other run"  # the state of a job whose directory holds a run of something else


class JobFile(TypedDict):
    """One job in sweep.json."""

    number: int
    overrides: list[str]
    name: str
    directory: str
    run_id: str


class SweepFile(TypedDict):
    """sweep.json."""

    jobs: list[JobFile]
    arguments: list[str]
    working_directory: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One job of the table.

    Attributes:
        name: The overrides in which the job differs from the others.
        step: Optimiser steps done, of `num_steps`; None before training.
        exact_match: Final and overall, on the first evaluation set.
        seconds: Wall time of the last attempt.
    """

    job: int
    name: str
    overrides: str
    state: str
    slot: str
    step: int | None
    num_steps: int | None
    loss: float | None
    exact_match: float | None
    f1: float | None
    seconds: float | None
    error: str | None
    directory: str


def read_rows(sweep: Path) -> list[Row]:
    """Return one row per job of the sweep.

    Raises:
        UserError: If the directory holds no sweep of ours.
    """
    is_led = is_locked(sweep)
    return [_row(sweep, entry, is_led=is_led) for entry in sweep_json(sweep)["jobs"]]


def sweep_json(sweep: Path) -> dict[str, Any]:
    """Return the launcher's description of the sweep.

    Raises:
        UserError: If there is none, or it is damaged.
    """
    path = sweep / "sweep.json"
    if not path.is_file():
        raise UserError(f"{sweep} holds no sweep.json; give a directory below multirun/")
    try:
        stored = record.read_json(path)
        reason = misfit(stored, SweepFile)
        if not reason and not all(is_below(job["directory"]) for job in stored["jobs"]):
            reason = "a directory is no name"
    except UserError:
        reason = "it is no JSON object"
    if reason:
        raise UserError(f"{path} is damaged: {reason}; the grid's own command writes it anew")
    return stored


def is_below(place: str) -> bool:
    """Return whether the place is below the sweep, at any depth: hydra.sweep.subdir has slashes."""
    names = place.split("/")
    return "\0" not in place and not any(n in ("", ".", "..") or len(n) > MAX_NAME for n in names)


def write_sweep(sweep: Path, jobs: Sequence[Job]) -> None:
    """Write sweep.json: what `medvqa status` and `medvqa resume` read.

    A sweeper that searches launches batch after batch; each adds its jobs.
    """
    stored: list[dict[str, Any]] = []
    with suppress(UserError):  # missing or damaged: it is written anew
        stored = sweep_json(sweep)["jobs"]
    first = jobs[0].number if jobs else 0
    entries = [entry for entry in stored if entry["number"] < first]
    entries += [
        {
            "number": job.number,
            "overrides": masked(job.overrides),
            "name": job.name,
            "directory": str(job.directory.relative_to(sweep)),
            "run_id": job.recorded_id,
        }
        for job in jobs
    ]
    record.write_json(
        sweep / "sweep.json",
        {"jobs": entries, "arguments": masked(sys.argv[1:]), "working_directory": str(Path.cwd())},
    )
    written_by_hydra = sweep / MULTIRUN
    if written_by_hydra.is_file():
        values = masked_values(OmegaConf.to_container(OmegaConf.load(written_by_hydra)))
        record.write_text(written_by_hydra, OmegaConf.to_yaml(OmegaConf.create(values)))


def strays(sweep: Path) -> list[str]:
    """Return a line for each run in the sweep's directory that is none of its jobs."""
    entries = sweep_json(sweep)["jobs"]
    owners = {entry["run_id"]: entry["number"] for entry in entries}
    known = {entry["directory"] for entry in entries}
    depths = {name.count("/") for name in known}
    records = [path for n in depths for path in sweep.glob("*/" * (n + 1) + "run.json")]
    others = sorted({str(path.parent.relative_to(sweep)) for path in records} - known)
    lines = []
    for name in others:
        number = owners.get(str(run_json(sweep / name).get("run_id")))
        copied = "" if number is None else f" (a copy of job {number})"
        lines.append(f"{name}{copied} is no job of this grid and is left out")
    return lines


def _row(sweep: Path, entry: dict[str, Any], *, is_led: bool) -> Row:
    directory = sweep / entry["directory"]
    run, status = run_json(directory), read_status(directory)
    state, error = status.state.value, status.error
    if run.get("run_id", entry["run_id"]) != entry["run_id"] and not is_led:
        state, error, run = OTHER_RUN, f"run.json is of another run, {run['run_id']}", {}
    elif run.get("state") == record.FINISHED:
        state, error = State.finished.value, None
    elif status.state is State.finished:
        state, error = State.failed.value, "run.json is missing or damaged"
    elif status.state is State.running and not (is_led or is_locked(directory)):
        state = State.interrupted.value  # the launcher was killed before it could record this
    step, loss = (None, None) if state == OTHER_RUN else _last_step(directory)
    plan, results = _mapping(run.get("plan")), _mapping(run.get("results"))
    name, values = next(((name, _mapping(of)) for name, of in results.items()), ("", {}))
    return Row(
        job=entry["number"],
        name=entry["name"],
        overrides=" ".join(map(str, entry["overrides"])),
        state=state,
        slot=status.slot,
        step=step,
        num_steps=plan.get("num_steps"),
        loss=loss,
        exact_match=_number(values.get(f"eval/{name}/final/overall/exact_match")),
        f1=_number(values.get(f"eval/{name}/final/overall/f1")),
        seconds=status.seconds,
        error=error,
        directory=entry["directory"],
    )


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _last_step(directory: Path) -> tuple[int | None, float | None]:
    for line in reversed(tail(directory / "metrics.jsonl", 2)):
        try:
            row = json.loads(line)
            return int(row["step"]), float(row["loss"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue  # a line that is being written
    return None, None


def counts(rows: Sequence[Row]) -> str:
    """Return for example `3 finished, 1 failed`."""
    return ", ".join(f"{n} {state}" for state, n in Counter(row.state for row in rows).items())


def write_summary(sweep: Path, rows: Sequence[Row]) -> None:
    """Write summary.json and summary.csv."""
    values = [asdict(row) for row in rows]
    record.write_json(sweep / "summary.json", {"jobs": values})
    record.write_csv(sweep / "summary.csv", values)
