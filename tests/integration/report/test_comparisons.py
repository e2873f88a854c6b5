"""Runs become arms, and pairs of fair arms are compared on the questions that both answer."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from medvqa.config.errors import UserError
from medvqa.evaluation.comparison import compare_arms
from medvqa.evaluation.statistics import holm, mcnemar
from medvqa.report.matching import Settings
from medvqa.report.rows import comparison_row
from medvqa.report.study import read_study
from medvqa.report.tables import tables
from medvqa.tracking.record import read_lines


def scores(directory, metric="exact_match"):
    rows = read_lines(directory / "evaluation" / "final" / "test" / "predictions.jsonl")
    return [float(row[metric]) for row in rows], [row["cluster"] for row in rows]


def test_an_arm_is_all_runs_that_differ_in_the_seed_alone(study):
    assert [arm.name for arm in study.arms] == [
        "tiny / closed_first",
        "tiny / mixed",
        "tiny / open_first",
    ]
    assert all([run.seed for run in arm.runs] == [1, 2, 3] for arm in study.arms)


def test_namesakes_are_told_apart_by_what_differs(written, tmp_path):
    for steps in (10, 20):
        written(tmp_path / str(steps), f"training.max_steps={steps}")
    written(
        tmp_path / "stages",
        "training.max_steps=10",
        "curriculum.stages=[{name: all, filter: all, share: 1, quota: 40}]",
    )
    study = read_study([tmp_path], Settings(allow_unequal=True, num_samples=20))
    assert len({arm.name for arm in study.arms}) == 3
    assert {arm.rest.partition(",")[0] for arm in study.arms} == {"max_steps=10", "max_steps=20"}


def test_how_much_was_evaluated_makes_no_other_arm(written, tmp_path):
    written(tmp_path / "1", "seed=1", "evaluation.blind=true")
    written(tmp_path / "2", "seed=2", "evaluation.blind=false")
    (arm,) = read_study([tmp_path]).arms
    assert len(arm.runs) == 2


def test_a_run_given_twice_or_copied_counts_once(written, tmp_path):
    run = written(tmp_path / "a" / "run", "seed=1")
    shutil.copytree(run, tmp_path / "b" / "run")
    study = read_study([tmp_path / "a", run, tmp_path / "b"])
    assert len(study.arms[0].runs) == 1
    assert any("not counted again" in note for note in study.notes)


# Comparisons.


def test_a_comparison_is_that_of_the_predictions_themselves(study, grid):
    (comparison,) = (
        c
        for c in study.comparisons
        if (c.a.ordering, c.b.ordering) == ("closed_first", "open_first")
        and (c.group, c.metric) == ("overall", "f1")
    )
    clusters = scores(grid / "open_first-1")[1]
    a, b = (
        [scores(grid / f"{name}-{seed}", "f1")[0] for seed in (1, 2, 3)]
        for name in ("closed_first", "open_first")
    )
    other = [float(np.mean(scores(grid / f"mixed-{seed}", "f1")[0])) for seed in (1, 2, 3)]
    expected = compare_arms(a, b, clusters, seeds_are_paired=False, others=[other])
    assert comparison.crossed == expected
    assert comparison.crossed.difference.high < 0


def test_the_effect_is_found_and_alike_arms_are_not_told_apart(study):
    p_values = {
        (c.a.ordering, c.b.ordering): c.p_holm
        for c in study.comparisons
        if (c.group, c.metric) == ("overall", "exact_match")
    }
    assert p_values["closed_first", "open_first"] < 0.05
    assert p_values["closed_first", "mixed"] > 0.05


def test_a_family_is_corrected_together_and_only_it(study):
    family = [c for c in study.comparisons if (c.group, c.metric) == ("open", "exact_match")]
    assert [c.family_size for c in family] == [3, 3, 3]
    assert [c.p_holm for c in family] == holm([c.crossed.p_value for c in family])
    means = [c.permutation.p_value for c in family]
    assert [c.permutation_p_holm for c in family] == holm(means)


def test_mcnemar_stands_for_each_seed_that_both_arms_have(study, grid):
    first = next(c for c in study.comparisons if c.metric == "exact_match")
    a, b = (scores(grid / f"{arm.ordering}-2")[0] for arm in (first.a, first.b))
    assert len(first.mcnemar) == 3
    assert first.mcnemar[1] == mcnemar(a, b)


def test_a_baseline_is_compared_with_all_others_and_is_the_second(grid):
    settings = Settings(baseline="tiny / mixed", num_samples=20)
    comparisons = read_study([grid], settings).comparisons
    assert {(c.a.ordering, c.b.ordering) for c in comparisons} == {
        ("closed_first", "mixed"),
        ("open_first", "mixed"),
    }
    with pytest.raises(UserError, match="'mxed' is no arm; the arms are: tiny / closed_first"):
        read_study([grid], replace(settings, baseline="mxed"))


def test_a_metric_compares_the_questions_that_it_applies_to(study, asked):
    closed = [c for c in study.comparisons if c.metric == "closed_accuracy"]
    num_closed = sum(example.answer_type == "closed" for example in asked)
    assert {c.crossed.difference.num_examples for c in closed} == {num_closed}
    assert {c.group for c in closed} == {"overall", "closed"}


def test_arms_are_paired_by_the_seeds_value_and_the_rest_is_named(written, tmp_path):
    for ordering, seeds in (("mixed", (1, 3, 5)), ("open_first", (1, 2, 5))):
        for seed in seeds:
            written(tmp_path / f"{ordering}-{seed}", f"curriculum={ordering}", f"seed={seed}")
    settings = Settings(seeds_are_paired=True, num_samples=20)
    study = read_study([tmp_path], settings)
    c = study.comparisons[0]
    assert c.seeds == ((1, 5), (1, 5))
    assert c.left_out == ("seed 3 of tiny / mixed", "seed 2 of tiny / open_first")
    assert "seed 3 of tiny / mixed" in "\n".join(tables(study)[2].notes)
    of_mixed, of_open = (
        [scores(tmp_path / f"{name}-{seed}")[0] for seed in (1, 5)]
        for name in (c.a.ordering, c.b.ordering)
    )
    expected = compare_arms(
        of_mixed, of_open, scores(tmp_path / "mixed-1")[1], seeds_are_paired=True
    )
    assert c.crossed == expected


def test_arms_without_a_common_seed_are_not_paired(written, tmp_path):
    for seed, ordering in enumerate(("mixed", "open_first"), start=1):
        written(tmp_path / ordering, f"curriculum={ordering}", f"seed={seed}")
    with pytest.raises(UserError, match="share no seed"):
        read_study([tmp_path], Settings(seeds_are_paired=True))


def test_identical_arms_print_a_dash(written, tmp_path):
    for ordering in ("mixed", "open_first"):
        for seed in (1, 2):
            written(
                tmp_path / f"{ordering}-{seed}",
                *(f"curriculum={ordering}", f"seed={seed}"),
                answer=lambda example, phase: example.answers[0] if example.id > "m" else "x",
            )
    study = read_study([tmp_path], Settings(num_samples=20))
    (table,) = [t for t in tables(study) if "differences" in t.title]
    assert all(row[3:6] == ("-", "-", "-") and row[9] == "-" for row in table.rows)
    assert comparison_row(study.comparisons[0])["p"] is None


def test_every_p_value_names_its_test_pairing_freedom_and_family(study):
    row = comparison_row(study.comparisons[0])
    assert row["test"] == "t by component, seed variance of 3 arms"
    assert (row["paired"], row["family_size"]) == ("no", 3)
    assert "seeds" in row["degrees_of_freedom"] and "pictures" in row["degrees_of_freedom"]
    (table,) = [t for t in tables(study) if "differences" in t.title]
    assert {"df", "paired", "family", "Holm"} <= set(table.header)
    assert row["test"] in "\n".join(table.notes)
