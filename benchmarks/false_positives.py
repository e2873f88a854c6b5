"""How often do studies without any effect show one, and how often is a true effect found?

    python -m benchmarks.false_positives            # 2,000 studies per cell, ten minutes
    python -m benchmarks.false_positives --table    # only print the table of the kept results

A study has four alike arms, so six pairs corrected by Holm. Every arm has the same seeds' standard
deviation, except that the first one varies more where a cell's ratio is above 1. A picture has
four right-or-wrong questions and its own difficulty. With paired seeds, the arms also share an
effect per seed of the same size. A study counts as a false positive if any of its six corrected
p-values is at most 0.05. Power is that of the three pairs of an arm that is better by the
difference which the report prints as detectable. Rates stay clear of 0 and 1.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.runs import parser_of
from medvqa.evaluation.components import OWN_SHARE, UNEQUAL_LEVEL, by_component
from medvqa.evaluation.power import detectable_difference
from medvqa.report.pairs import LARGEST_DETECTABLE

CELL = ("seeds", "paired", "sd", "pictures", "ratio")
OUT = Path(__file__).parent / "results" / "false_positives.json"
NUM_ARMS, QUESTIONS = 4, 4
PAIRS = tuple(itertools.combinations(range(NUM_ARMS), 2))
PRINTED = 1000  # studies over which the printed detectable difference is averaged
LEVEL = 0.05 / len(PAIRS)  # Holm's first step: no pair is rejected unless one is here
USED = "pooled, by component, at least 0.8 of the pair's own"
METHODS = (
    "one Satterthwaite df (before)",  # two arms, over seeds and pictures
    "df = seeds - 1",  # the same standard error
    "two arms, by component",  # seed variance of the two arms alone
    "pooled, Satterthwaite",  # of all arms; Kenward-Roger's df in balanced designs
    "pooled, by component",  # each part with its own t quantile
    USED,
)


def studies(
    rng: np.random.Generator, cell: dict[str, float], number: int, effect: float = 0.0
) -> np.ndarray:
    """Return rates of right answers: (studies, arms, seeds, pictures); the first arm is better."""
    seeds, pictures, sd = int(cell["seeds"]), int(cell["pictures"]), cell["sd"] / 100
    rate = rng.beta(5, 5, size=(number, 1, 1, pictures)) - effect / 2
    sds = sd * np.array([cell.get("ratio", 1.0), *[1.0] * (NUM_ARMS - 1)])[:, None, None]
    rate = rate + sds * rng.normal(size=(number, NUM_ARMS, seeds, 1))
    if cell["paired"]:
        rate = rate + sd * rng.normal(size=(number, 1, seeds, 1))
    rate[:, 0] += effect
    return rng.binomial(QUESTIONS, np.clip(rate, 0, 1)) / QUESTIONS


def unequal(means: np.ndarray, *, paired: bool) -> np.ndarray:
    """Return in which studies Bartlett's test finds the arms' variances over seeds unequal."""
    residuals = means - means.mean(axis=2, keepdims=True)
    if paired:
        residuals = residuals - residuals.mean(axis=1, keepdims=True)
    arms = np.moveaxis(residuals, 1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):  # an arm without variance is unequal
        return np.asarray(stats.bartlett(*arms, axis=-1).pvalue < UNEQUAL_LEVEL)


def half_width(
    variances: list[np.ndarray], freedoms: list[Any], level: float = LEVEL
) -> np.ndarray:
    """Return half the width of the interval of components, as `components.reach` does."""
    quantiles = [stats.t.isf(level / 2, freedom) for freedom in freedoms]
    return np.sqrt(sum(v * q**2 for v, q in zip(variances, quantiles, strict=True)))


def analysed(y: np.ndarray, *, paired: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return by method |difference| and the half interval: (studies, pairs).

    The same formulas as in medvqa/evaluation/components.py, for many studies at once;
    tests/unit/evaluation/test_comparison.py compares the two.
    """
    num_seeds, num_pictures = y.shape[2:]
    means, by_picture = y.mean(axis=3), y.mean(axis=2)
    residuals = y - by_picture[:, :, None] - means[..., None] + means.mean(axis=2)[..., None, None]
    deviations = means - means.mean(axis=2, keepdims=True)
    pooled_freedom = NUM_ARMS * (num_seeds - 1)
    if paired:
        deviations = deviations - deviations.mean(axis=1, keepdims=True)
        pooled_freedom = (NUM_ARMS - 1) * (num_seeds - 1)
    pooled = 2 * (deviations**2).sum(axis=(1, 2)) / pooled_freedom / num_seeds
    differ = unequal(means, paired=paired)
    sizes, halves = [], []
    for i, j in PAIRS:
        sizes.append(np.abs(means[:, i].mean(axis=1) - means[:, j].mean(axis=1)))
        pictures = (by_picture[:, i] - by_picture[:, j]).var(axis=1, ddof=1) / num_pictures
        parts = [(means[:, k], residuals[:, k]) for k in (i, j)]
        if paired:
            parts = [(parts[0][0] - parts[1][0], parts[0][1] - parts[1][1])]
        halves.append(half_widths(parts, pictures, pooled, pooled_freedom, differ))
    size = np.stack(sizes, axis=1)
    return {name: (size, np.stack([half[name] for half in halves], axis=1)) for name in METHODS}


def half_widths(
    parts: list[tuple[np.ndarray, np.ndarray]],
    pictures: np.ndarray,
    pooled: np.ndarray,
    pooled_freedom: int,
    differ: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return half the interval of one pair by method.

    Args:
        parts: Means (studies, seeds) and residuals (studies, seeds, pictures) of each arm, or of
            the paired difference.
        pictures: Variance of the difference over pictures.
        pooled: Variance over seeds, of all arms together.
        pooled_freedom: Its degrees of freedom.
        differ: Where the arms' variances are unequal.
    """
    num_seeds, num_pictures = parts[0][1].shape[1:]
    n, p = num_seeds - 1, num_pictures - 1
    over = [m.var(axis=1, ddof=1) / num_seeds for m, _ in parts]
    flips = [(r**2).sum(axis=(1, 2)) / (n * p * num_seeds * num_pictures) for _, r in parts]
    rest = np.maximum(pictures - sum(flips), 0)
    own = [np.maximum(v, f) for v, f in zip(over, flips, strict=True)]
    two = np.maximum(sum(over), sum(flips))  # an equal-variance t of the two arms
    seeds = np.maximum(pooled, sum(flips))
    robust = np.maximum(seeds, OWN_SHARE * sum(over))
    total, summed = sum(over) + pictures, seeds + rest
    freedom = total**2 / (sum(v**2 for v in over) / n + pictures**2 / p)
    kenward = summed**2 / (seeds**2 / pooled_freedom + rest**2 / p)
    before = [np.maximum.reduce([total - sum(flips), sum(over), pictures])]
    alone = half_width([*own, rest], [*[n] * len(own), p])
    used = half_width([robust, rest], [pooled_freedom, p])
    return {
        "one Satterthwaite df (before)": half_width(before, [freedom]),
        "df = seeds - 1": half_width(before, [n]),
        "two arms, by component": half_width([two, rest], [n * len(parts), p]),
        "pooled, Satterthwaite": half_width([summed], [kenward]),
        "pooled, by component": half_width([seeds, rest], [pooled_freedom, p]),
        USED: np.where(differ, alone, used),
    }


def simulate(cell: dict[str, float], num_studies: int) -> dict[str, Any]:
    """Return the cell with false positives, the detectable difference and the power there."""
    rng = np.random.default_rng([int(10 * value) for value in cell.values()])
    paired = bool(cell["paired"])
    block = max(1, int(2e6 / (NUM_ARMS * cell["seeds"] * cell["pictures"])))
    false, power = np.zeros(len(METHODS)), np.zeros(len(METHODS))
    for start in range(0, num_studies, block):
        by_method = analysed(studies(rng, cell, min(block, num_studies - start)), paired=paired)
        false += [int((size >= half).any(axis=1).sum()) for size, half in by_method.values()]
    sizes = [printed(studies(rng, cell, 1)[0], paired=paired) for _ in range(PRINTED)]
    detectable = float(np.mean(sizes))  # the report prints no number above 50 points
    num_powered = num_studies // 2
    for start in range(0, num_powered, block):
        y = studies(rng, cell, min(block, num_powered - start), min(detectable, LARGEST_DETECTABLE))
        with_effect = slice(0, NUM_ARMS - 1)  # the pairs of the better arm
        by_method = analysed(y, paired=paired)
        power += [(s >= h)[:, with_effect].mean(axis=1).sum() for s, h in by_method.values()]
    return {
        **cell,
        "studies": num_studies,
        "detectable": detectable,
        "false": dict(zip(METHODS, (false / num_studies).tolist(), strict=True)),
        "power": dict(zip(METHODS, (power / num_powered).tolist(), strict=True)),
    }


def printed(y: np.ndarray, *, paired: bool) -> float:
    """Return the detectable difference of the first pair of a study, as the report computes it."""
    sizes = np.full(y.shape[-1], float(QUESTIONS))
    others = [arm.mean(axis=1) for arm in y[2:]]
    parts = by_component([arm * QUESTIONS for arm in y[:2]], sizes, paired, others)
    return detectable_difference(parts.components, alpha=LEVEL)


def cells() -> list[dict[str, float]]:
    """Return all cells: with equal seed variances first, then with one arm that varies more."""
    equal = itertools.product((3, 5, 8), (0, 1), (0, 2, 5, 10), (30, 62, 315), (1,))
    unequal = itertools.product((3, 5, 8), (0, 1), (2,), (62, 315), (3, 5))
    return [dict(zip(CELL, map(float, one), strict=True)) for one in (*equal, *unequal)]


def table(results: list[dict[str, Any]]) -> Any:
    """Return worst and mean cell of each method by number of seeds, as the page shows them."""
    import pandas

    rows = []
    for method, (number, row) in itertools.product(METHODS, enumerate(results)):
        values = {name: row[name][method] for name in ("false", "power")}
        test = stats.binomtest(round(values["false"] * row["studies"]), row["studies"])
        low = test.proportion_ci(0.98, "exact").low  # the lower 99 % limit, one-sided
        rows.append({"method": method, "cell": number, **row, **values, "low": low})
    cells = pandas.DataFrame(rows)
    equal = cells[cells["ratio"] == 1]
    is_valid = equal.groupby("method")["low"].transform("max") <= 0.05
    best = equal[is_valid].groupby("cell")["power"].max()
    equal = equal.assign(power_ratio=equal["power"] / equal["cell"].map(best))
    groups = ["method", "seeds"]
    columns = equal.groupby(groups).agg(
        worst=("false", "max"), mean=("false", "mean"), worst_low=("low", "max"),
        power=("power", "mean"), power_ratio=("power_ratio", "min"),
    )  # fmt: skip
    for ratio in (3, 5):
        unequal_cells = cells[cells["ratio"] == ratio]
        columns[f"{ratio} times"] = unequal_cells.groupby(groups)["false"].max()
    return columns.loc[list(METHODS)].round(3)


def main() -> None:
    """Simulate what is not there yet, keep it, print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--studies", type=int, default=2000, help="per cell")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--table", action="store_true", help="simulate nothing")
    options = parser.parse_args()
    results = json.loads(options.out.read_text()) if options.out.exists() else []
    done = {tuple(row[key] for key in CELL) for row in results}
    for cell in [] if options.table else cells():
        if tuple(cell.values()) not in done:
            results.append(simulate(cell, options.studies))
            options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results).to_string())  # noqa: T201
    print("power at the detectable difference:")  # noqa: T201
    for seeds in (3, 5, 8):
        used = [row["power"][USED] for row in results if (row["seeds"], row["ratio"]) == (seeds, 1)
                and row["detectable"] <= LARGEST_DETECTABLE]  # fmt: skip
        print(f"{seeds} seeds: {min(used):.2f} to {max(used):.2f}")  # noqa: T201


if __name__ == "__main__":
    main()
