"""Error bars: every number has its count and a 95 % interval."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medvqa.example import Score

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def clustered_bootstrap(
    values: Sequence[float], clusters: Sequence[str], *, num_samples: int, seed: int
) -> Score:
    """Return the mean with its 95 % percentile interval over resampled clusters.

    Questions on one picture are not independent, so whole pictures are drawn with replacement
    (Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8).
    A single cluster has no spread to resample: its interval is the mean itself.

    Args:
        values: One a question, in any unit.
        clusters: The picture of each question.
        num_samples: Bootstrap resamples.
        seed: Of the resampling.

    Raises:
        ValueError: If there is nothing to average, or the lengths differ.
    """
    import numpy as np

    if not values:
        raise ValueError("no values to average; is the split or the filter empty?")
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} values but {len(clusters)} clusters")
    array = np.asarray(values, dtype=np.float64)
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(index, weights=array).astype(np.float64)
    sizes = np.bincount(index).astype(np.float64)
    means = _resampled_means(sums, sizes, num_samples=num_samples, seed=seed)
    low, high = np.quantile(means, [0.025, 0.975])
    return Score(
        mean=float(array.mean()), low=float(low), high=float(high), num_examples=len(values)
    )


def _resampled_means(
    sums: "NDArray[np.float64]", sizes: "NDArray[np.float64]", *, num_samples: int, seed: int
) -> "NDArray[np.float64]":
    """Return the mean of each resample: drawing clusters is drawing their multiplicities."""
    import numpy as np

    rng = np.random.default_rng(seed)
    num_clusters = len(sums)
    counts = rng.multinomial(num_clusters, np.full(num_clusters, 1 / num_clusters), num_samples)
    return np.asarray((counts @ sums) / (counts @ sizes))
