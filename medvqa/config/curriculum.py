"""The config group `curriculum`: stages, their order and how they merge."""

from dataclasses import dataclass, field
from enum import Enum

from medvqa.config.bounds import STEPS, bounded, check, named


class Filter(Enum):
    """Which examples a stage draws from.

    `easy`, `medium` and `hard` are the thirds of the pool by the length of answer and question.
    """

    open = "open"
    closed = "closed"
    easy = "easy"
    medium = "medium"
    hard = "hard"
    all = "all"


class Order(Enum):
    """Order in a stage.

    `shuffle` draws each pass in a new random order, `dataset` in the order of the data set;
    `easy_first` and `hard_first` sort each pass of `shuffle` by the stated difficulty
    (`data.difficulty`), else by the length of answer and question; `interleave_sources` spreads
    each data set of a mixture evenly over each pass.
    """

    shuffle = "shuffle"
    dataset = "dataset"
    easy_first = "easy_first"
    hard_first = "hard_first"
    interleave_sources = "interleave_sources"


class Merge(Enum):
    """What becomes of the stages.

    `sequence` keeps them apart. The others make one stage of the same examples: `shuffle` in
    random order, `interleave` alternating between the stages, `easy_first` and `hard_first`
    sorted as the orders of these names.
    """

    sequence = "sequence"
    shuffle = "shuffle"
    interleave = "interleave"
    easy_first = "easy_first"
    hard_first = "hard_first"


# Functional syntax because `continue` is a keyword of Python but the right word for the user.
LearningRatePolicy = Enum("LearningRatePolicy", ["continue", "rewarm", "restart"])


class OptimizerPolicy(Enum):
    """What happens to the optimiser's moments at the start of a stage."""

    keep = "keep"
    reset = "reset"


@dataclass(kw_only=True)
class StageConfig:
    """One stage: what it draws, how long it lasts, what happens at its start.

    Attributes:
        name: Names the stage in logs, records and plots.
        levels: Difficulties that the stage draws from; all if null.
        quota: At most so many different examples (a seeded choice); all that match if null.
        share: Part of `training.max_steps`, in (0, 1]. Give exactly one of share, steps, epochs.
        steps: Optimiser steps of the stage.
        epochs: Passes over the stage's examples.
        learning_rate: `continue` the one schedule, `rewarm` to it over the warm-up steps, or
            `restart` a schedule of the stage's own.
    """

    name: str = named()
    filter: Filter = Filter.all
    levels: list[float] | None = field(default=None, metadata={"interval": "[-1000000, 1000000]"})
    quota: int | None = None
    order: Order = Order.shuffle
    share: float | None = bounded("(0, 1]", None)
    steps: int | None = bounded(STEPS, None)
    epochs: float | None = bounded("(0, 10000]", None)
    learning_rate: LearningRatePolicy = LearningRatePolicy["continue"]
    optimizer: OptimizerPolicy = OptimizerPolicy.keep

    def __post_init__(self) -> None:
        """Check that the length is given once."""
        lengths = [self.share, self.steps, self.epochs]
        check(
            sum(length is not None for length in lengths) == 1,
            f"curriculum stage {self.name!r}: give exactly one of share, steps, epochs",
        )


@dataclass(kw_only=True)
class CurriculumConfig:
    """Stages, and whether their examples stay in sequence.

    With `merge: shuffle` the result is one stage. It holds exactly the multiset of examples that
    the same stages in sequence consume. It is the control for the question "does order matter?".

    Attributes:
        name: Names the curriculum in the run's directory, in records and in reports.
    """

    name: str = named()
    stages: list[StageConfig] = field(default_factory=list)
    merge: Merge = Merge.sequence

    def __post_init__(self) -> None:
        """Check that shares make a whole."""
        check(len(self.stages) > 0, f"curriculum {self.name!r} has no stages")
        names = [stage.name for stage in self.stages]
        check(len(set(names)) == len(names), f"curriculum stages need different names, got {names}")
        shares = [stage.share for stage in self.stages if stage.share is not None]
        check(
            not shares or len(shares) < len(names) or abs(sum(shares) - 1) < 1e-6,
            f"curriculum {self.name!r}: the shares of its stages sum to {sum(shares):g}, not 1",
        )
        check(
            len(shares) in (0, len(names)),
            f"curriculum {self.name!r}: give a share for every stage or for none",
        )
