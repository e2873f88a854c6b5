"""`hydra/launcher=ray`: one Ray task a cell, with the books of every grid.

Options are those of Hydra's Ray launcher. There a process that dies takes the results of the other
cells along; here each task runs its cell in a process below it and only says how it ended.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from medvqa.config.errors import UserError
from medvqa.sweep.job import Job, State, Status, read_status
from medvqa.sweep.launcher import GridLauncher, ShowChange, mark_waiting
from medvqa.sweep.node import last_status, run_on_node
from medvqa.sweep.scheduler import GRACE_S, python_path

log = logging.getLogger(__name__)

POLL_S = 1.0


class RayLauncher(GridLauncher):
    """Runs the jobs on a local Ray, or on the cluster that `ray.init.address` names."""

    runs_here = False

    def __init__(self, ray: DictConfig) -> None:
        self._options: Any = OmegaConf.to_container(ray, resolve=True)

    def check_place(self) -> None:
        """Raise a `UserError` if Ray or its launcher is not installed."""
        try:
            import hydra_plugins.hydra_ray_launcher._launcher_util  # noqa: F401
        except ImportError as error:
            raise UserError(f"hydra/launcher=ray: {error}; pip install 'medvqa[ray]'") from None

    def run_jobs(
        self, jobs: Sequence[Job], sweep: Path, show_change: ShowChange
    ) -> dict[int, Status]:
        """Start a task a job; Ctrl-C cancels all, and leaves it so that it can go on."""
        import ray
        from hydra_plugins.hydra_ray_launcher._launcher_util import start_ray

        os.environ["PYTHONPATH"] = python_path()  # a local Ray's processes inherit it
        start_ray(OmegaConf.create(self._options["init"]))
        try:
            check_resources(self._options, ray.cluster_resources())  # type: ignore[no-untyped-call]
            mark_waiting(jobs)
            task = ray.remote(**self._options["remote"])(run_on_node)
            tasks = {task.remote(str(job.directory)): job for job in jobs}
            return _wait(tasks, show_change)
        finally:
            ray.shutdown()


def check_resources(options: Mapping[str, Any], available: Mapping[str, float]) -> None:
    """Refuse what a local Ray would wait for until the end of time.

    Raises:
        UserError: If a job asks for more than this machine has.
    """
    if options["init"].get("address") is not None:
        return  # a cluster may grow
    for name, resource in (("num_gpus", "GPU"), ("num_cpus", "CPU")):
        asked, there = options["remote"].get(name) or 0, available.get(resource, 0)
        if asked > there:
            raise UserError(
                f"hydra.launcher.ray.remote.{name}={asked:g}, but Ray finds {there:g} here; "
                f"ask for less, or give hydra.launcher.ray.init.address"
            )


def _wait(tasks: "Mapping[Any, Job]", show_change: ShowChange) -> dict[int, Status]:
    import ray

    ended: dict[int, Status] = {}
    shown: dict[int, State] = {}
    waiting = list(tasks)
    try:
        while waiting:
            done, waiting = ray.wait(waiting, timeout=POLL_S)
            for task in waiting:
                job, status = tasks[task], read_status(tasks[task].directory)
                if status.state is not shown.get(job.number, State.waiting):
                    shown[job.number] = status.state
                    show_change(job, status)
            for task in done:
                ended[tasks[task].number] = status = last_status(tasks[task], lost=_loss(task))
                show_change(tasks[task], status)
    except KeyboardInterrupt:
        for task in waiting:
            ray.cancel(task)  # interrupts the task, which ends its worker in order
        ray.wait(waiting, num_returns=len(waiting), timeout=GRACE_S)
        raise
    return ended


def _loss(task: Any) -> str:
    import ray

    try:
        return f"Ray says {ray.get(task)}"
    except ray.exceptions.RayError as error:
        return f"Ray lost the task: {str(error).splitlines()[0]}"
