"""Where Hydra looks for launchers: `medvqa.cli` puts the folder above on Python's path."""

from medvqa.sweep import launcher


class IsolatedLauncher(launcher.IsolatedLauncher):
    """See `medvqa.sweep.launcher`; Hydra takes classes that are defined here only."""
