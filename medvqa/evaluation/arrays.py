"""Types of scores; NumPy itself is imported where it computes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[np.float64]"
Values: TypeAlias = "Sequence[float] | NDArray[np.float64]"  # one per question
Scores: TypeAlias = "Sequence[Values] | NDArray[np.float64]"  # (runs, questions)
