"""Where Hydra looks for sweepers: ours, because Hydra's own hydra-optuna-sweeper pins optuna<3."""

from medvqa.sweep import search


class OptunaSweeper(search.OptunaSweeper):
    """See `medvqa.sweep.search`; Hydra takes classes that are defined here only."""
