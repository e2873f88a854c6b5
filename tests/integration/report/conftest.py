"""Finished runs with invented answers, written in a moment."""

import pytest

from medvqa.config.data import SourceConfig
from medvqa.data.pool import load_examples
from medvqa.report.matching import Settings
from medvqa.report.study import read_study
from tests.synthetic_grid import guesser, write_cell

QUICK = (
    "evaluation.bertscore.enabled=false",
    "training.warmup_steps=1",
)


@pytest.fixture(scope="session")
def pool():
    return load_examples(SourceConfig(name="phantom", split="train", limit=200), seed=0)


@pytest.fixture(scope="session")
def asked():
    return load_examples(SourceConfig(name="phantom", split="test", limit=60), seed=0)


@pytest.fixture(scope="session")
def written(pool, asked):
    """Return a function that writes a finished run of a command line."""

    def write(directory, *overrides, ability=0.0, examples=None, answer=None, **more):
        examples = asked if examples is None else examples
        limit = f"data.evaluation.test.limit={len(examples)}"
        answer = answer or guesser(examples, ability=ability, base="tiny", seed=directory.name)
        overrides = [*QUICK, limit, *overrides]
        write_cell(directory, overrides, pool, {"test": examples}, answer, **more)
        return directory

    return write


@pytest.fixture(scope="session")
def grid(written, tmp_path_factory):
    """Three orderings, three seeds each; `open_first` is better."""
    place = tmp_path_factory.mktemp("grid")
    for ordering, ability in (("open_first", 1.5), ("closed_first", 0.0), ("mixed", 0.0)):
        for seed in (1, 2, 3):
            written(
                place / f"{ordering}-{seed}",
                *(f"curriculum={ordering}", f"seed={seed}"),
                ability=ability,
                phases=("majority", "zero_shot", "blind", "final"),
            )
    return place


@pytest.fixture(scope="session")
def study(grid):
    return read_study([grid], Settings(num_samples=200))
