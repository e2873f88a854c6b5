"""`medvqa sync DIR`: upload offline W&B runs; at first it only says what would be uploaded."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvqa.example import UserError
from medvqa.record import is_locked
from medvqa.tracking import has_key

NUM_AT_A_TIME = 4
STAGING = "wandb-data/artifacts/staging"


@dataclass(frozen=True, kw_only=True)
class OfflineRun:
    """One offline log of a run; a run that was resumed has several.

    Attributes:
        log: Directory `wandb/offline-run-*`.
        project: As it was configured, with the group if there is one.
        exit_code: None for a run that was killed.
        files: All that the log references and exists: media, tables and their images.
        missing: What the log references and is not there.
    """

    log: Path
    project: str
    exit_code: int | None
    is_synced: bool
    is_running: bool
    files: tuple[Path, ...]
    missing: tuple[Path, ...]

    @property
    def directory(self) -> Path:
        """The run directory of ours."""
        return self.log.parent.parent

    @property
    def size_bytes(self) -> int:
        """The log and its files."""
        return sum(path.stat().st_size for path in (*self.log.glob("*.wandb"), *self.files))

    @property
    def state(self) -> str:
        """One word for the table."""
        if self.is_running:
            return "running"
        if self.is_synced:
            return "synced"
        if self.missing:
            return "incomplete"
        return "ready"

    @property
    def moved_from(self) -> Path | None:
        """Where the run directory stood while it ran, if its missing images are here."""
        staging = self.directory / STAGING
        for path in self.missing:
            if str(path.parent).endswith(f"/{STAGING}") and (staging / path.name).is_file():
                return Path(str(path.parent).removesuffix(f"/{STAGING}"))
        return None


def find_runs(directories: Sequence[Path]) -> list[OfflineRun]:
    """Return the offline runs at or below the directories, oldest first.

    Raises:
        UserError: If a directory is missing or holds none.
    """
    found: dict[Path, OfflineRun] = {}
    for directory in directories:
        if not directory.is_dir():
            raise UserError(f"{directory} is no directory; give a run or a sweep")
        # Runs that were set aside by fresh=true are no results.
        logs = [
            log
            for log in sorted(directory.resolve().rglob("offline-run-*"))
            if list(log.glob("*.wandb"))
            and not any(part.startswith("previous-") for part in log.parts)
        ]
        if not logs:
            raise UserError(f"{directory} holds no offline W&B run (tracking.mode=offline)")
        new = [log for log in logs if log not in found]
        with ThreadPoolExecutor(NUM_AT_A_TIME) as pool:
            found |= zip(new, pool.map(read_run, new), strict=True)
    # The name is the second of the start and a random id: of one second, by directory.
    return sorted(found.values(), key=lambda run: run.log.name.rpartition("-")[0])


def read_run(log: Path) -> OfflineRun:
    """Return what the log says, and which of the files that it references exist."""
    project, exit_code = "", None
    referenced: dict[Path, None] = {}
    (path, *_) = sorted(log.glob("*.wandb"))
    for record in log_records(path):
        if record["type"] == "run":
            said = record["run"]
            project = "/".join(filter(None, [said.get("project"), said.get("run_group")]))
        elif record["type"] == "exit":
            exit_code = record["exit"].get("exit_code", 0)
        referenced |= dict.fromkeys(_referenced(record, log))
    return OfflineRun(
        log=log,
        project=project,
        exit_code=exit_code,
        is_synced=bool(list(log.glob("*.wandb.synced"))),
        is_running=is_locked(log.parent.parent),
        files=tuple(path for path in referenced if path.is_file()),
        missing=tuple(path for path in referenced if not path.is_file()),
    )


def _referenced(record: dict[str, Any], log: Path) -> Iterator[Path]:
    if record["type"] == "files":
        yield from (log / "files" / file["path"] for file in record["files"].get("files", []))
    elif record["type"] == "artifact":
        # Images of tables: absolute paths, outside `files`.
        for entry in record["artifact"].get("manifest", {}).get("contents", []):
            if entry.get("local_path"):
                yield Path(entry["local_path"])


def log_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a .wandb file, read by W&B itself; the format is its own.

    Raises:
        UserError: If W&B cannot read it.
    """
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        reason = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"W&B cannot read {path}: {reason}")
    for line in answer.stdout.splitlines():
        yield json.loads(line)


def main_sync(argv: Sequence[str]) -> None:
    """List the offline W&B runs below the directories; with --yes, upload them."""
    parser = argparse.ArgumentParser("medvqa sync", description=main_sync.__doc__)
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="run or sweep")
    parser.add_argument("--yes", action="store_true", help="upload; without it nothing is sent")
    parser.add_argument("--again", action="store_true", help="also what was uploaded before")
    parser.add_argument(
        "--incomplete", action="store_true", help="also runs of which images are missing"
    )
    options = parser.parse_args(argv)
    if options.yes and not has_key(os.environ):
        raise UserError(
            "no W&B key here: run `wandb login` or set WANDB_API_KEY (without --yes, sync only "
            "lists the runs)"
        )
    runs = find_runs(options.directories)
    states = {"ready"} | ({"synced"} if options.again else set())
    states |= {"incomplete"} if options.incomplete else set()
    chosen = [run for run in runs if run.state in states]
    show(runs)
    if not options.yes:
        num_bytes = sum(run.size_bytes for run in chosen)
        _say(f"{len(chosen)} of {len(runs)} runs, {num_bytes / 1e6:.1f} MB; upload with --yes")
        return
    code = upload(chosen) if chosen else 0
    left = [run for run in runs if run.state in ("incomplete", "running") and run not in chosen]
    if code or left:
        reason = f"`wandb sync` left with exit code {code}" if code else "see the table"
        sys.exit(f"medvqa: {len(left)} runs were left out; {reason}")


def upload(runs: Sequence[OfflineRun]) -> int:
    """Let W&B upload the runs; return its exit code."""
    return subprocess.run(
        [*sync_command(runs), "--yes", "-n", str(NUM_AT_A_TIME)], check=False
    ).returncode


def sync_command(runs: Sequence[OfflineRun]) -> list[str]:
    """Return W&B's own command for the runs."""
    again = ["--include-synced"] if any(run.is_synced for run in runs) else []
    logs = [str(run.log) for run in runs]
    return [sys.executable, "-m", "wandb", "sync", *again, *logs]


def show(runs: Sequence[OfflineRun]) -> None:
    """Print a table, and what can be done about each run that is not ready."""
    from rich.table import Table

    table = Table()
    for name in ("run", "log", "project", "state", "exit", "files", "MB", "missing"):
        table.add_column(name, overflow="fold")
    for run in runs:
        code = "killed" if run.exit_code is None else str(run.exit_code)
        counts = (str(len(run.files)), f"{run.size_bytes / 1e6:.1f}", str(len(run.missing)))
        table.add_row(run.directory.name, run.log.name, run.project, run.state, code, *counts)
    _say(table)
    for run in (run for run in runs if run.state == "incomplete"):
        _say(f"{run.log}: {advice(run)}")


def advice(run: OfflineRun) -> str:
    """Return what is wrong with an incomplete run, and the remedy if there is one."""
    if run.moved_from is not None:
        return (
            f"the run has moved, and W&B looks for its images in {run.moved_from}; let it find "
            f"them: mkdir -p '{run.moved_from.parent}' && ln -s '{run.directory}' "
            f"'{run.moved_from}'"
        )
    return f"{len(run.missing)} files are missing, first {run.missing[0]}; --incomplete goes on"


def _say(what: Any) -> None:
    from rich.console import Console

    console = Console(width=None if Console().is_terminal else 200)
    console.print(what, highlight=False, soft_wrap=isinstance(what, str), markup=False)
