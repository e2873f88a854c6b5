"""The config group `study`: the claim that a grid tests. `medvqa report` reads it; runs do not."""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from medvqa.config.bounds import bounded


class Questions(Enum):
    """Which questions a comparison is about."""

    overall = "overall"
    open = "open"
    closed = "closed"


@dataclass(kw_only=True)
class PlannedComparison:
    """One comparison that was fixed before the runs: arm `a` is claimed to beat arm `b`.

    Attributes:
        a: Curriculum of the claim.
        b: Curriculum of the control.
        set: Evaluation set.
        metric: A metric of results.json.
    """

    a: str = MISSING
    b: str = MISSING
    set: str = "test"
    questions: Questions = Questions.overall
    metric: str = "exact_match"


@dataclass(kw_only=True)
class StudyConfig:
    """A claim and the comparisons that decide it; corrected together.

    Attributes:
        claim: One sentence; null where the grid tests none.
        source: Who made the claim.
        margin: Equivalence margin: a gain below this fraction of the score counts as none.
        paired_seeds: Whether equal seeds of two arms share what the seed decides.
    """

    claim: str | None = None
    source: str | None = None
    margin: float = bounded("(0, 1)", 0.05)
    paired_seeds: bool = False
    comparisons: list[PlannedComparison] = field(default_factory=list)
