"""Planned comparisons end in verdicts."""

import re

import pytest

from medvqa.report.matching import Settings
from medvqa.report.page import page
from medvqa.report.rows import verdict_row
from medvqa.report.study import read_study
from medvqa.report.table import markdown
from medvqa.report.tables import tables
from medvqa.report.thumbnails import read_pictures
from medvqa.report.verdicts import final_words
from tests.synthetic_grid import edit_run

CLAIM = (
    "+study.claim=order helps",
    "+study.source=us",
    "study.comparisons=[{a: open_first, b: mixed}]",
)


@pytest.fixture
def claimed(written, tmp_path):
    """Return a function that writes both arms of a claim and reads its verdict."""

    def read(abilities, *overrides, seeds=(1, 2, 3, 4, 5), before=lambda: None):
        for ordering, ability in zip(("open_first", "mixed"), abilities, strict=True):
            for seed in seeds:
                written(
                    tmp_path / f"{ordering}-{seed}",
                    *(f"curriculum={ordering}", f"seed={seed}", *CLAIM, *overrides),
                    ability=ability,
                    phases=("majority", "final"),
                )
        before()
        return read_study([tmp_path], Settings(num_samples=20))

    return read


@pytest.mark.parametrize(
    ("abilities", "overrides", "verdict"),
    [
        ((2.5, 0.5), (), "supported"),
        ((0.5, 2.5), (), "refuted"),
        ((1.0, 1.0), ("study.margin=0.4",), "refuted"),
        ((1.0, 1.0), ("study.margin=0.01",), "could not have been seen at this size"),
    ],
    ids=["better", "worse", "equivalent", "too small a study"],
)
def test_a_planned_comparison_ends_in_a_verdict(abilities, overrides, verdict, claimed, capsys):
    study = claimed(abilities, *overrides)
    (judged,) = study.verdicts
    assert (judged.verdict, judged.family_size) == (verdict, 1)
    assert f"Verdict: {verdict} (1 {verdict})" in final_words(study.verdicts)[0]
    assert verdict in markdown(tables(study)[-1])
    shown = page(study, read_pictures(()), title="")
    assert f'"verdict":"{verdict}"' in shown
    assert f"Verdict: {verdict} (1 {verdict})" in shown
    row = verdict_row(judged)
    assert (row["verdict"], row["paired"]) == (verdict, "no")
    assert row["test"] == "t by component, seed variance of 2 arms"


def test_an_arm_below_the_majority_answer_gets_no_verdict(claimed):
    study = claimed((-9.0, 1.0))
    (judged,) = study.verdicts
    assert judged.verdict == "no verdict"
    assert judged.reason == "open_first has not learned the task"
    assert "has not learned the task" in markdown(tables(study)[0])


def test_diverged_seeds_are_counted_and_take_the_verdict(claimed, tmp_path):
    def diverge():
        for seed in (4, 5):
            edit_run(tmp_path / f"open_first-{seed}", state="diverged", error="loss is nan")

    study = claimed((2.0, 0.5), before=diverge)
    (judged,) = study.verdicts
    assert (judged.verdict, judged.reason) == ("no verdict", "open_first: 2 of 5 diverged")
    assert "2 of 5 diverged" in markdown(tables(study)[0])
    assert any("2 of 5 diverged" in note for note in study.notes)


def test_an_arm_of_which_every_run_diverged_is_shown(claimed, tmp_path):
    def diverge():
        for seed in (1, 2):
            edit_run(tmp_path / f"open_first-{seed}", state="diverged", error="loss is nan")

    study = claimed((2.0, 0.5), seeds=(1, 2), before=diverge)
    assert "2 of 2 diverged" in markdown(tables(study)[0])
    assert study.verdicts[0].verdict == "no verdict"
    assert "2 of 2 diverged" in page(study, read_pictures(()), title="")


def test_few_seeds_are_explained_in_one_sentence(claimed):
    notes = "\n".join(tables(claimed((1.5, 0.0), seeds=(1, 2, 3)))[2].notes)
    points = r"(\d+ points|\d+ to (\d+|more than 50) points, depending on the metric)"
    assert re.search(rf"With 3 seeds per arm, this study can show .* of about {points}\. It", notes)
    assert "cannot show that a smaller difference is absent" in notes
