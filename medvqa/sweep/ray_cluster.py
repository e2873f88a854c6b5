"""`hydra/launcher=ray`: one Ray task per job.

The options are those of Hydra's Ray launcher. With that launcher, a process that dies takes the
results of the other jobs along. Here each task runs its job in a process of its own.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from medvqa.config.errors import UserError
from medvqa.config.machine import python_path
from medvqa.sweep.cluster import run_on_node, wait_for
from medvqa.sweep.job import Job, ShowChange, Status
from medvqa.sweep.launcher import GridLauncher, mark_waiting


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
            raise UserError(f'hydra/launcher=ray: {error}; pip install -e ".[ray]"') from None

    def run_jobs(
        self, jobs: Sequence[Job], sweep: Path, show_change: ShowChange
    ) -> dict[int, Status]:
        """Start one task per job; Ctrl-C cancels all tasks in order."""
        import ray
        from hydra_plugins.hydra_ray_launcher._launcher_util import start_ray

        os.environ["PYTHONPATH"] = python_path()  # a local Ray's processes inherit it
        start_ray(OmegaConf.create(self._options["init"]))
        try:
            check_resources(self._options, ray.cluster_resources())  # type: ignore[no-untyped-call]
            mark_waiting(jobs)
            remote = ray.remote(**self._options["remote"])(run_on_node)
            tasks = {job.number: remote.remote(job) for job in jobs}
            try:
                return wait_for(jobs, lambda job: _loss(tasks[job.number]), show_change)
            except KeyboardInterrupt:
                for task in tasks.values():
                    ray.cancel(task)  # interrupts the task, which ends its worker in order
                wait_for(jobs, lambda job: _loss(tasks[job.number]), show_change)
                raise
        finally:
            ray.shutdown()


def check_resources(options: Mapping[str, Any], available: Mapping[str, float]) -> None:
    """Refuse resources for which a local Ray would wait for ever.

    Raises:
        UserError: If a job asks for more than this machine has.
    """
    if options["init"].get("address") is not None:
        return  # a cluster may grow
    for name, resource in (("num_gpus", "GPU"), ("num_cpus", "CPU")):
        requested, present = options["remote"].get(name) or 0, available.get(resource, 0)
        if requested > present:
            raise UserError(
                f"hydra.launcher.ray.remote.{name}={requested:g}, but Ray finds {present:g} here; "
                f"ask for less, or give hydra.launcher.ray.init.address"
            )


def _loss(task: Any) -> str | None:
    import ray

    if not ray.wait([task], timeout=0)[0]:
        return None
    try:
        return f"Ray says {ray.get(task)}"
    except ray.exceptions.RayError as error:
        return f"Ray lost the task: {str(error).splitlines()[0]}"
