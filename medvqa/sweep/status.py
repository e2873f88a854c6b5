"""The grid while it runs and after: one row per job, read from the jobs' files alone."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medvqa.config.errors import UserError
from medvqa.sweep.job import State, read_status, run_json, tail
from medvqa.tracking import record


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
    is_led = record.is_locked(sweep)
    return [_row(sweep, entry, is_led=is_led) for entry in sweep_json(sweep)["jobs"]]


def sweep_json(sweep: Path) -> dict[str, Any]:
    """Return the launcher's description of the sweep."""
    stored = record.read_json(sweep / "sweep.json")
    if not stored:
        raise UserError(f"{sweep} holds no sweep.json; give a directory below multirun/")
    return stored


def _row(sweep: Path, entry: dict[str, Any], *, is_led: bool) -> Row:
    directory = sweep / entry["directory"]
    run, status = run_json(directory), read_status(directory)
    state = status.state
    if run.get("state") == record.FINISHED and run.get("run_id") == entry["run_id"]:
        state = State.finished
    elif state is State.running and not (is_led or record.is_locked(directory)):
        state = State.interrupted  # the launcher was killed before it could record this
    step, loss = _last_step(directory)
    results: dict[str, dict[str, float]] = run.get("results") or {"": {}}
    name, values = next(iter(results.items()))
    return Row(
        job=entry["number"],
        name=entry["name"],
        overrides=" ".join(entry["overrides"]),
        state=state.value,
        slot=status.slot,
        step=step,
        num_steps=run.get("plan", {}).get("num_steps"),
        loss=loss,
        exact_match=values.get(f"eval/{name}/final/overall/exact_match"),
        f1=values.get(f"eval/{name}/final/overall/f1"),
        seconds=status.seconds,
        error=None if state is State.finished else status.error,
        directory=entry["directory"],
    )


def _last_step(directory: Path) -> tuple[int | None, float | None]:
    for line in reversed(tail(directory / "metrics.jsonl", 2)):
        try:
            row = json.loads(line)
            return int(row["step"]), float(row["loss"])
        except (ValueError, KeyError):
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
