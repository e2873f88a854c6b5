"""A grid for `-m`: what every launcher keeps, wherever the jobs run."""

import logging
import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from medvqa.config.cells import BASIC_SWEEPER, swept_keys
from medvqa.config.compose import hydra_files, resolved
from medvqa.config.errors import DivergenceError, UserError
from medvqa.config.identity import run_id
from medvqa.config.machine import make_directory
from medvqa.config.secrets import masked
from medvqa.config.typed import check_hardware, typed_anywhere
from medvqa.sweep.display import grid_table, live_table, show_failures
from medvqa.sweep.job import Job, ShowChange, State, Status, run_json
from medvqa.sweep.status import MULTIRUN, counts, is_below, read_rows, write_summary, write_sweep
from medvqa.tracking import identity, record
from medvqa.tracking.files import PATIENCE_S, directory_lock, set_aside
from medvqa.tracking.terminal import console

log = logging.getLogger(__name__)


class SweepError(Exception):
    """Some jobs did not finish; the message says which, and where their logs are."""


class GridLauncher(Launcher):
    """Checks all cells, skips what is finished, shows the grid, writes the summary.

    Attributes:
        runs_here: Whether the jobs see this machine's GPUs; a login node has none.
    """

    runs_here = True

    def check_place(self) -> None:
        """Raise a `UserError` if jobs cannot be started from here at all."""

    def start_early(self, jobs: Sequence[Job], stack: ExitStack) -> None:
        """Start what takes long while the jobs are checked; the stack ends it."""

    @abstractmethod
    def run_jobs(
        self, jobs: Sequence[Job], sweep: Path, show_change: ShowChange
    ) -> dict[int, Status]:
        """Run the jobs, keep their status files, and return how each ended by its number."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra gives; jobs are composed in `launch`."""
        self.context = hydra_context
        self.config = config
        # Hydra writes it anew before `launch`.
        path = Path(str(config.hydra.sweep.dir)).resolve() / MULTIRUN
        self._multirun = path, path.read_bytes() if path.is_file() else None

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
        with ExitStack() as stack:
            with self._unchanged_if_refused():
                self.check_place()
                lock = directory_lock(sweep, patience_s=PATIENCE_S)
                stack.enter_context(lock)
                composed = [
                    self._compose(sweep, initial_job_idx + index, list(overrides))
                    for index, overrides in enumerate(job_overrides)
                ]
                jobs = [job for job, _ in composed]
                self.start_early(jobs, stack)
                cache: dict[str, Any] = {}  # each data set is loaded and compared once
                restarted = self._restarted(jobs, cache) if self.config.fresh else set()
                check_jobs(jobs, sweep, cache, here=self.runs_here, restarted=restarted)
            for job, config in composed:
                _make_directory(job, config, is_restarted=job.directory in restarted)
            write_sweep(sweep, jobs)
            statuses = self._run(sweep, jobs)
        left = [str(n) for n, status in statuses.items() if status.state is not State.finished]
        if left:
            all_diverged = all(statuses[int(n)].state is State.diverged for n in left)
            advice = "those diverged" if all_diverged else "the same command runs what is left"
            raise SweepError(
                f"{len(left)} of {len(jobs)} jobs did not finish ({', '.join(left)}); {advice}"
            )
        return [_job_return(job, config) for job, config in composed]

    @contextmanager
    def _unchanged_if_refused(self) -> Iterator[None]:
        path, content = self._multirun
        try:
            yield
        except BaseException:
            if content is not None:
                path.write_bytes(content)
            else:
                path.unlink(missing_ok=True)
            raise

    def _restarted(self, jobs: Sequence[Job], cache: dict[str, Any]) -> set[Path]:
        """Return the directories that fresh=true starts over.

        These are the cells of a grid that cannot be shown as they are, or else all. A search starts
        over as a whole.
        """
        every = {job.directory for job in jobs}
        if self.config.hydra.sweeper._target_ != BASIC_SWEEPER:
            return every
        restarted = {job.directory for job in jobs if not _can_be_shown(job, cache)} or every
        log.info("fresh=true starts %d of %d runs over", len(restarted), len(every))
        return restarted

    def _compose(self, sweep: Path, number: int, overrides: list[str]) -> tuple[Job, DictConfig]:
        config = self.context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        HydraConfig.instance().set_config(config)
        values = resolved(config)
        subdir = os.path.normpath(str(config.hydra.sweep.subdir))
        if not is_below(subdir):
            raise UserError(f"job {number}: hydra.sweep.subdir={subdir} is not below {sweep}")
        job = Job(
            number=number,
            overrides=tuple(config.hydra.overrides.task),
            name=self._name(config.hydra.overrides.task),
            directory=sweep / subdir,
            # Starting over is done here, once: a job that is interrupted goes on.
            config=values | {"fresh": False},
            run_id=run_id(values),
            sweep=sweep.name,
        )
        return job, config

    def _name(self, overrides: Sequence[str]) -> str:
        """Return what sets the cell apart from the others of the grid."""
        swept = swept_keys(self.config)
        varied = [text for text in overrides if text.partition("=")[0].lstrip("+") in swept]
        return " ".join(masked(varied or overrides))

    def _run(self, sweep: Path, jobs: Sequence[Job]) -> dict[int, Status]:
        states = [job.ended_as for job in jobs]
        unfinished = [job for job, state in zip(jobs, states, strict=True) if not state]
        for name, number in Counter(state.name for state in states if state).items():
            log.info("%d of %d jobs are %s already", number, len(jobs), name)
        # Cells may differ in words only, such as tracking.project: one run answers for them all.
        todo = list({job.directory: job for job in reversed(unfinished)}.values())[::-1]
        ended: dict[int, Status] = {}
        try:
            with live_table(sweep) as show_change:
                ended = self.run_jobs(todo, sweep, show_change) if todo else {}
        finally:
            rows = read_rows(sweep)
            write_summary(sweep, rows)
            show_failures(todo, sweep)
            title = f"{counts(rows)}; summary.csv and all runs in {sweep}"
            console().print(grid_table(rows, title=title))
        of_directory = {job.directory: ended[job.number] for job in todo}
        for job, state in zip(jobs, states, strict=True):
            if state:
                of_directory.setdefault(job.directory, Status(state=state))
        return {job.number: of_directory[job.directory] for job in jobs}


def _make_directory(job: Job, config: DictConfig, *, is_restarted: bool) -> None:
    """Make the job's directory with `.hydra/`; set aside the files of a run that starts over."""
    if is_restarted:
        with directory_lock(job.directory, patience_s=PATIENCE_S):
            set_aside(job.directory)
    make_directory(job.directory, "hydra.sweep.subdir=")
    if not job.ended_as:
        for name, text in hydra_files(job.config, job.overrides, config.hydra).items():
            record.write_text(job.directory / ".hydra" / name, text)


def mark_waiting(jobs: Sequence[Job]) -> None:
    """Say of each job that its turn has not come."""
    for job in jobs:
        Status(state=State.waiting).write(job.directory)


def _can_be_shown(job: Job, cache: dict[str, Any]) -> bool:
    from medvqa.inputs import Inputs

    inputs = Inputs(typed_anywhere(job.config), cache)
    try:
        return identity.is_finished(job.directory, job.config, inputs.row_hashes)
    except UserError:
        return False


def check_jobs(
    jobs: Sequence[Job], sweep: Path, cache: dict[str, Any], *, here: bool, restarted: Set[Path]
) -> None:
    """Refuse a grid of which one job cannot run, so that no cell fails hours later.

    A directory that holds another run is refused as `medvqa.run.run` would refuse it.

    Args:
        jobs: All jobs of the grid.
        sweep: The grid's directory.
        cache: See `Inputs`.
        here: Whether this machine's GPUs must do.
        restarted: Directories whose runs start over.

    Raises:
        UserError: Naming the job.
    """
    from medvqa.inputs import Inputs

    owners: dict[Path, Job] = {}
    for job in jobs:
        config = typed_anywhere(job.config)
        inputs = Inputs(config, cache)
        owner = owners.setdefault(job.directory, job)
        try:
            if owner.run_id != job.run_id:
                raise UserError(f"it would share {job.directory} with job {owner.number}")
            if job.directory not in restarted and identity.is_finished(
                job.directory, job.config, inputs.row_hashes, grid=sweep
            ):
                continue
            if here:
                check_hardware(config)
            inputs.check()
            inputs.show_overlap()
            assert inputs.plan.num_steps
        except DivergenceError:
            continue  # it is left as it is, and shown
        except UserError as error:
            raise UserError(f"job {job.number} ({job.name}): {error}") from error


def _job_return(job: Job, config: DictConfig) -> JobReturn:
    result = JobReturn(cfg=config, working_dir=str(job.directory), status=JobStatus.COMPLETED)
    result.return_value = run_json(job.directory).get("headline")
    return result
