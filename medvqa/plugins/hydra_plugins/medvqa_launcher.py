"""Where Hydra looks for launchers: `medvqa.cli` puts the folder above on Python's path."""

from medvqa.sweep import isolated, ray_cluster, slurm


class IsolatedLauncher(isolated.IsolatedLauncher):
    """See `medvqa.sweep.isolated`; Hydra takes classes that are defined here only."""


class SlurmLauncher(slurm.SlurmLauncher):
    """See `medvqa.sweep.slurm`."""


class RayLauncher(ray_cluster.RayLauncher):
    """See `medvqa.sweep.ray_cluster`."""
