"""The grid as a table, while it runs and after: read from the jobs' files alone."""

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvqa.config.errors import UserError
from medvqa.sweep.job import State, read_status, run_json, tail
from medvqa.tracking import record

if TYPE_CHECKING:
    from rich.table import Table

STYLES = {
    State.finished: "green",
    State.running: "cyan",
    State.waiting: "dim",
    State.interrupted: "yellow",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One job of the table.

    Attributes:
        name: What sets the job apart from the others.
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
    """Return a row a job of the sweep.

    Raises:
        UserError: If the directory holds no sweep of ours.
    """
    is_led = record.is_locked(sweep)
    return [_row(sweep, entry, is_led=is_led) for entry in sweep_json(sweep)["jobs"]]


def sweep_json(sweep: Path) -> dict[str, Any]:
    """Return what the launcher wrote about the sweep."""
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
        state = State.interrupted  # the launcher was killed and could not say so
    step, loss = _last_step(directory)
    results = next(iter(run.get("results", {}).items()), None)
    values = results[1] if results else {}
    prefix = f"eval/{results[0]}/final/overall/" if results else ""
    return Row(
        job=entry["number"],
        name=entry["name"],
        overrides=" ".join(entry["overrides"]),
        state=state.value,
        slot=status.slot,
        step=step,
        num_steps=run.get("plan", {}).get("num_steps"),
        loss=loss,
        exact_match=values.get(f"{prefix}exact_match"),
        f1=values.get(f"{prefix}f1"),
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


def shortened(rows: Sequence[Row], num_lines: int) -> list[Row]:
    """Return as many rows as a terminal has lines for, what runs or has failed before the rest."""
    if len(rows) <= num_lines:
        return list(rows)
    quiet = (State.finished.value, State.waiting.value)
    kept = sorted(rows, key=lambda row: (row.state in quiet, row.state == quiet[0], row.job))
    return sorted(kept[:num_lines], key=lambda row: row.job)


def table(rows: Sequence[Row], *, title: str) -> "Table":
    """Return the rows as a rich table."""
    from rich.table import Table

    result = Table(title=title, title_justify="left")
    for name in ("job", "cell", "state", "gpu", "step", "loss", "EM", "F1", "seconds"):
        result.add_column(name, overflow="fold")
    for row in rows:
        style = STYLES.get(State(row.state), "red")
        step = "" if row.step is None else f"{row.step}/{row.num_steps or '?'}"
        result.add_row(
            str(row.job), row.name, f"[{style}]{row.state}[/]", row.slot, step,
            *(_number(value, 4) for value in (row.loss, row.exact_match, row.f1)),
            _number(row.seconds, 0),
        )  # fmt: skip
    return result


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def counts(rows: Sequence[Row]) -> str:
    """Return for example `3 finished, 1 failed`."""
    return ", ".join(f"{n} {state}" for state, n in Counter(row.state for row in rows).items())


def write_summary(sweep: Path, rows: Sequence[Row]) -> None:
    """Write summary.json and summary.csv."""
    record.write_json(sweep / "summary.json", {"jobs": [asdict(row) for row in rows]})
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(Row.__dataclass_fields__))
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    record.write_text(sweep / "summary.csv", text.getvalue())
