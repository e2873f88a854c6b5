"""Intervals: the definition, the published one, and coverage where questions share pictures."""

import itertools
import json

import numpy as np
import pytest

from medvqa.statistics import clustered_bootstrap


def test_the_mean_is_over_questions_and_the_interval_over_pictures():
    # Resamples of pictures a (1, 1, 1) and b (0): aa -> 1, ab and ba -> 3/4, bb -> 0, so the
    # 2.5 % quantile is 0 and the 97.5 % quantile is 1.
    score = clustered_bootstrap([1, 1, 1, 0], ["a", "a", "a", "b"], num_samples=4000, seed=0)
    assert (score.mean, score.low, score.high, score.num_examples) == (0.75, 0.0, 1.0, 4)


def test_it_equals_the_enumeration_of_all_resamples():
    values = {"a": [1.0, 0.0], "b": [1.0], "c": [0.0, 0.0, 1.0], "d": [1.0, 1.0]}
    means = [
        np.concatenate([values[name] for name in drawn]).mean()
        for drawn in itertools.product(values, repeat=4)
    ]
    flat = [v for group in values.values() for v in group]
    clusters = [name for name, group in values.items() for _ in group]
    score = clustered_bootstrap(flat, clusters, num_samples=100_000, seed=1)
    assert score.low == pytest.approx(np.quantile(means, 0.025), abs=0.03)
    assert score.high == pytest.approx(np.quantile(means, 0.975), abs=0.03)


def test_it_gives_the_published_interval_where_questions_are_independent(shared):
    place = shared / "reference" / "vqa_rad_qwen2_vl_2b"
    rows = [json.loads(line) for line in (place / "predictions.jsonl").read_text().splitlines()]
    published = json.loads((place / "metrics.json").read_text())["closed"]["ci95"]
    right = [float(r["prediction"] == r["reference"]) for r in rows if r["qtype"] == "closed"]
    score = clustered_bootstrap(right, list(map(str, range(len(right)))), num_samples=4000, seed=0)
    assert score.mean == pytest.approx(published["point"])
    assert score.low == pytest.approx(published["lower"], abs=0.01)
    assert score.high == pytest.approx(published["upper"], abs=0.01)


def coverage(*, clustered: bool) -> float:
    rng = np.random.default_rng(7)
    num_covered = 0
    for _ in range(200):
        pictures = rng.normal(size=60)
        values = (np.repeat(pictures, 5) + 0.5 * rng.normal(size=300)).tolist()
        names = [str(i // 5 if clustered else i) for i in range(300)]
        score = clustered_bootstrap(values, names, num_samples=400, seed=0)
        num_covered += score.low <= 0 <= score.high
    return num_covered / 200


def test_it_covers_where_questions_share_pictures_and_the_naive_one_does_not():
    # 95 % nominal; 200 simulations have a standard error of 1.5 points.
    assert coverage(clustered=True) > 0.90
    assert coverage(clustered=False) < 0.75


def test_nothing_to_average_is_an_error_and_not_zero():
    with pytest.raises(ValueError, match="no values to average"):
        clustered_bootstrap([], [], num_samples=10, seed=0)
