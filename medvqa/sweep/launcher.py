"""Hydra's launcher for `-m`: the cells become jobs on a queue of GPUs."""

import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from medvqa import record
from medvqa.composition import resolved, typed
from medvqa.example import UserError
from medvqa.hardware import num_cuda_devices
from medvqa.sweep.job import CONSOLE, Job, State, Status, run_json, tail
from medvqa.sweep.scheduler import Scheduler
from medvqa.sweep.status import counts, read_rows, table, write_summary

log = logging.getLogger(__name__)

PATIENCE_S = 10.0  # for the workers of a launcher that was killed
SHOWN_LINES = 12


class SweepError(Exception):
    """Some jobs did not finish; the message says which, and where their logs are."""


class IsolatedLauncher(Launcher):
    """Runs each job in a process of its own, or jobs of one model in one warm process."""

    def __init__(
        self,
        slots: str | int | Sequence[int],
        warm: bool,
        timeout_minutes: float | None,
        fail_fast: bool,
    ) -> None:
        self.slots = find_slots(slots)
        self.warm = warm
        self.timeout_s = None if timeout_minutes is None else 60 * timeout_minutes
        self.fail_fast = fail_fast

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra gives; jobs are composed in `launch`."""
        self.context = hydra_context
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run what is not finished; print every failure; always write the summary.

        Raises:
            UserError: If the directory is another launcher's, or a job's data is wrong.
        """
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        sweep = Path(str(self.config.hydra.sweep.dir)).resolve()
        with record.directory_lock(sweep, patience_s=PATIENCE_S):
            composed = [
                self._compose(sweep, initial_job_idx + index, list(overrides))
                for index, overrides in enumerate(job_overrides)
            ]
            jobs = [job for job, _ in composed]
            check_jobs([job for job in jobs if not job.is_finished])
            for job, config in composed:
                _write_hydra_files(job, config)
            _write_sweep(sweep, jobs)
            statuses = self._run(sweep, jobs)
        left = [str(n) for n, status in statuses.items() if status.state is not State.finished]
        if left:
            raise SweepError(
                f"{len(left)} of {len(jobs)} jobs did not finish ({', '.join(left)}); "
                "the same command runs what is left"
            )
        return [_job_return(job, config) for job, config in composed]

    def _compose(self, sweep: Path, number: int, overrides: list[str]) -> tuple[Job, DictConfig]:
        config = self.context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        HydraConfig.instance().set_config(config)
        values = resolved(config)
        job = Job(
            number=number,
            overrides=tuple(config.hydra.overrides.task),
            directory=sweep / str(config.hydra.sweep.subdir),
            config=values,
            run_id=record.run_id(values),
            sweep=sweep.name,
        )
        return job, config

    def _run(self, sweep: Path, jobs: Sequence[Job]) -> dict[int, Status]:
        todo = [job for job in jobs if not job.is_finished]
        if len(todo) < len(jobs):
            log.info("%d of %d jobs are finished already", len(jobs) - len(todo), len(jobs))
        for job in todo:
            job.write()
            Status(state=State.waiting).write(job.directory)
        slots = self.slots[: max(1, sum(job.num_gpus for job in todo))]
        log.info("%d jobs on %s, in %s", len(todo), describe_slots(slots), sweep)
        statuses = {job.number: Status(state=State.finished) for job in jobs}
        try:
            with live_table(sweep) as show_change:

                def changed(job: Job, status: Status) -> None:
                    status.write(job.directory)
                    show_change(job, status)

                scheduler = Scheduler(
                    slots, self.warm, self.timeout_s, self.fail_fast, on_change=changed
                )
                statuses |= scheduler.run(todo)
        finally:
            rows = read_rows(sweep)
            write_summary(sweep, rows)
            show_failures(todo, sweep)
            _print(table(rows, title=f"{counts(rows)}; summary.csv and all runs in {sweep}"))
        return statuses


def find_slots(wanted: str | int | Sequence[int]) -> list[str]:
    """Return a slot a worker: the GPUs that may be used, or one slot on the CPU.

    Args:
        wanted: `auto`, a number of CPU slots, or a list of GPU indices.
    """
    if isinstance(wanted, int):
        if wanted < 1:
            raise UserError(f"hydra.launcher.slots must be 1 or more, got {wanted}")
        return [""] * wanted
    if wanted != "auto":
        return [str(index) for index in wanted]
    num_gpus = num_cuda_devices(os.environ)
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return (visible or [str(index) for index in range(num_gpus)]) if num_gpus else [""]


def describe_slots(slots: Sequence[str]) -> str:
    """Return for example `GPU 0, 1`."""
    return f"GPU {', '.join(slots)}" if slots[0] else f"{len(slots)} CPU slot(s)"


def check_jobs(jobs: Sequence[Job]) -> None:
    """Load and compare each data set once and plan each job, so that no cell fails hours later.

    Raises:
        UserError: Naming the job.
    """
    from medvqa.run import DataOnce, check, pass_gate, prepare

    once = DataOnce()
    for job in jobs:
        config = typed(job.config)
        try:
            data = once.load(config)
            check(config, data)
            prepare(config, pass_gate(config, data, once.overlap(config)))
        except UserError as error:
            raise UserError(f"job {job.number} ({' '.join(job.overrides)}): {error}") from error


def _write_hydra_files(job: Job, config: DictConfig) -> None:
    directory = job.directory / ".hydra"
    directory.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(dict(job.config)), directory / "config.yaml")
    OmegaConf.save(OmegaConf.create(list(job.overrides)), directory / "overrides.yaml")
    OmegaConf.save(OmegaConf.create({"hydra": config.hydra}), directory / "hydra.yaml")


def _write_sweep(sweep: Path, jobs: Sequence[Job]) -> None:
    """Write sweep.json: what `medvqa status` and `medvqa resume` read.

    A sweeper that searches launches batch after batch; each adds its jobs.
    """
    stored = record.read_json(sweep / "sweep.json").get("jobs", [])
    first = jobs[0].number if jobs else 0
    entries = [entry for entry in stored if entry["number"] < first]
    entries += [
        {
            "number": job.number,
            "overrides": list(job.overrides),
            "directory": job.directory.name,
            "run_id": job.run_id,
        }
        for job in jobs
    ]
    record.write_json(
        sweep / "sweep.json",
        {"jobs": entries, "arguments": sys.argv[1:], "working_directory": str(Path.cwd())},
    )


def _job_return(job: Job, config: DictConfig) -> JobReturn:
    result = JobReturn(
        overrides=list(job.overrides),
        cfg=config,
        hydra_cfg=config.hydra,
        working_dir=str(job.directory),
        task_name="medvqa",
        status=JobStatus.COMPLETED,
    )
    result.return_value = run_json(job.directory).get("headline")
    return result


def show_failures(jobs: Sequence[Job], sweep: Path) -> None:
    """Print the end of the console log of each job that failed."""
    from medvqa.sweep.job import read_status

    for job in jobs:
        status = read_status(job.directory)
        if job.is_finished or status.state in (State.waiting, State.interrupted, State.running):
            continue
        path = job.directory / CONSOLE
        lines = "\n".join(f"  | {line}" for line in tail(path, SHOWN_LINES))
        sys.stderr.write(
            f"job {job.number} ({' '.join(job.overrides)}) {status.state.value}: {status.error}; "
            f"the end of {path.relative_to(sweep)}:\n{lines}\n"
        )


@contextmanager
def live_table(sweep: Path) -> Iterator[Any]:
    """Show the grid while it runs: a table on a terminal, else a line where a job changes."""
    if not sys.stderr.isatty():
        yield _log_change
        return
    from rich.console import Console
    from rich.live import Live

    done = threading.Event()
    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:

        def refresh() -> None:
            while not done.wait(1.0):
                rows = read_rows(sweep)
                live.update(table(rows, title=counts(rows)), refresh=True)

        thread = threading.Thread(target=refresh, daemon=True)
        thread.start()
        try:
            yield lambda job, status: None
        finally:
            done.set()
            thread.join()


def _log_change(job: Job, status: Status) -> None:
    what = f"job {job.number} ({' '.join(job.overrides)})"
    if status.state is State.running:
        log.info("%s started%s", what, f" on GPU {status.slot}" if status.slot else "")
    else:
        error = f": {status.error}" if status.error else ""
        log.info("%s %s after %.1f s%s", what, status.state.value, status.seconds or 0, error)


def _print(renderable: Any) -> None:
    from rich.console import Console

    Console(width=None if Console().is_terminal else 160).print(renderable)
