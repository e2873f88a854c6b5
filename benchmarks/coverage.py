"""How often do the intervals hold the truth, and the tests find what is not there?

    python -m benchmarks.coverage --simulations 1000

Answers are right where a latent score is positive: 60 pictures with four questions each, seeds,
pictures and single answers as normal effects. Prints the tables of docs/statistics.md.
"""

import argparse

import numpy as np

from medvqa.evaluation.comparison import arm_mean, compare_arms
from medvqa.evaluation.statistics import mcnemar, paired_permutation

NAMES = [str(i // 4) for i in range(240)]


def drawn(
    rng: np.random.Generator, num_runs: int, seeds: float, shared: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return two alike arms, each (runs, questions); `shared` is the pictures' own difficulty."""
    easy = np.repeat(shared * rng.normal(size=60), 4)
    arms = []
    for _ in range(2):
        own = np.repeat(0.5 * rng.normal(size=60), 4)
        runs = seeds * rng.normal(size=(num_runs, 1)) + 0.7 * rng.normal(size=(num_runs, 240))
        arms.append(easy + own + runs > 0)
    return arms[0], arms[1]


def coverage(num_runs: int, seeds: float, simulations: int) -> list[float]:
    """Return how often the intervals of an arm and of a difference, paired or not, hold it."""
    rng = np.random.default_rng(1)
    held = np.zeros(3)
    for _ in range(simulations):
        a, b = drawn(rng, num_runs, seeds, 0.7)
        one = arm_mean(a, NAMES).score
        held[0] += one.low <= 0.5 <= one.high
        for place, paired in ((1, False), (2, True)):
            score = compare_arms(a, b, NAMES, seeds_are_paired=paired).difference
            held[place] += score.low <= 0 <= score.high
    return list(held / simulations)


def false_positives(num_runs: int, seeds: float, simulations: int) -> list[float]:
    """Return how often alike arms differ at 5 %: crossed, permutation, question-wise, McNemar."""
    rng = np.random.default_rng(2)
    found = np.zeros(4)
    for _ in range(simulations):
        a, b = drawn(rng, num_runs, seeds, 0.7)
        means = a.mean(axis=0).tolist(), b.mean(axis=0).tolist()
        p_values = (
            compare_arms(a, b, NAMES, seeds_are_paired=False).p_value,
            paired_permutation(*means, NAMES, num_samples=199, seed=0).p_value,
            paired_permutation(*means, num_samples=199, seed=0).p_value,
            mcnemar(a[0].tolist(), b[0].tolist()).mid_p_value,
        )
        found += [p <= 0.05 for p in p_values]
    return list(found / simulations)


def main() -> None:
    """Print both tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=1000)
    simulations = parser.parse_args().simulations
    lines = ["| seeds | their SD | arm | difference | difference, paired seeds |", "|---" * 5 + "|"]
    for num_runs in (2, 3, 5, 10):
        for seeds in (0.0, 0.1, 0.3, 1.0):
            values = " | ".join(f"{v:.3f}" for v in coverage(num_runs, seeds, simulations))
            lines.append(f"| {num_runs} | {seeds} | {values} |")
    heads = "crossed | permutation by picture | permutation by question | McNemar mid-p"
    lines += ["", f"| seeds | their SD | {heads} |", "|---" * 6 + "|"]
    for num_runs, seeds in ((1, 0.0), (3, 0.0), (1, 0.3), (3, 0.3), (5, 0.3)):
        values = " | ".join(f"{v:.3f}" for v in false_positives(num_runs, seeds, simulations))
        lines.append(f"| {num_runs} | {seeds} | {values} |")
    print("\n".join(lines))  # noqa: T201


if __name__ == "__main__":
    main()
