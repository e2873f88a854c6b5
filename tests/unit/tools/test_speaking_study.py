"""The study on the speaking base: folds are joined, and readings follow the preregistration."""

import pytest

from benchmarks.speaking_study import analyse, reading


def cell(arm, fold, seed, *, right, yes):
    phases = {"final": {"exact_match": right, "f1": [float(x) for x in right], "yes": yes}}
    return {"arm": arm, "fold": fold, "seed": seed, "max_steps": 200, "phases": phases}


def record(scores):
    kinds = ["closed"] * 2 + ["open"] * 2
    sets = {
        f"fold{fold}": {
            "ids": list("abcd"),
            "kinds": kinds,
            "clusters": [f"{fold}{n}" for n in range(4)],
            "labels": ["yes", "no", None, None],
        }
        for fold in range(1, 6)
    }
    cells = [
        cell(arm, fold, seed, right=right, yes=[0.9, 0.2])
        for arm, right in scores.items()
        for fold in sets
        for seed in (1, 2)
    ]
    return {"sets": sets, "cells": cells, "unfinished": 0}


def test_a_row_joins_the_folds_of_a_seed_and_each_type_has_its_metric():
    found = analyse(record({"open_first": "1000", "closed_only": "1100", "mixed": "1111"}), 2)
    by_pair = {(one["b"], one["questions"]): one for one in found["primary"]}
    assert by_pair["closed_only", "closed"]["difference"] == pytest.approx(-0.5)
    assert by_pair["mixed", "open"]["difference"] == -1
    assert by_pair["mixed", "open"]["num_questions"] == 10
    assert {arm["auc"] for arm in found["arms"]} == {1.0}


def test_an_arm_with_a_missing_fold_is_no_arm():
    values = record({"open_first": "1000", "closed_only": "1100", "mixed": "1111"})
    values["cells"] = [c for c in values["cells"] if (c["arm"], c["fold"]) != ("mixed", "fold3")]
    found = analyse(values, 2)
    assert {arm["arm"] for arm in found["arms"]} == {"open_first", "closed_only"}
    assert [one["b"] for one in found["primary"]] == ["closed_only"]


@pytest.mark.parametrize(
    ("low", "high", "holm_p", "expected"),
    [
        (-0.02, 0.02, 0.5, "equivalent"),
        (0.005, 0.02, 0.01, "difference and equivalent"),
        (0.04, 0.09, 0.01, "difference"),
        (-0.05, 0.02, 0.5, "undecided"),
    ],
)
def test_a_reading_follows_from_margin_and_adjusted_p(low, high, holm_p, expected):
    assert reading({"low": low, "high": high, "holm_p": holm_p}) == expected
