"""From run directories to arms, comparisons, tables and files: real runs and written ones."""

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medvqa.cli import guarded
from medvqa.config.data import SourceConfig
from medvqa.config.errors import UserError
from medvqa.data.pool import load_examples
from medvqa.evaluation.comparison import compare_arms
from medvqa.evaluation.statistics import holm, mcnemar
from medvqa.report.command import main_report
from medvqa.report.matching import Settings
from medvqa.report.page import Texts, encode, page
from medvqa.report.published import NOT_STATED
from medvqa.report.rows import comparison_row, verdict_row
from medvqa.report.runs import read_runs
from medvqa.report.study import read_study
from medvqa.report.table import latex, markdown, rich_table
from medvqa.report.tables import tables
from medvqa.report.thumbnails import read_pictures
from medvqa.report.verdicts import final_words
from medvqa.tracking.record import read_lines, write_json
from medvqa.tracking.terminal import console
from tests.conftest import ROOT
from tests.synthetic_grid import guesser, write_cell

QUICK = (
    "evaluation.bertscore.enabled=false",
    "training.warmup_steps=1",
)


@pytest.fixture(scope="session")
def pool():
    return load_examples(SourceConfig(name="phantom", split="train", limit=200), seed=0)


@pytest.fixture(scope="session")
def asked():
    return load_examples(SourceConfig(name="phantom", split="test", limit=60), seed=0)


@pytest.fixture(scope="session")
def written(pool, asked):
    """Return a function that writes a finished run of a command line."""

    def write(directory, *overrides, ability=0.0, examples=None, answer=None, **more):
        examples = asked if examples is None else examples
        limit = f"data.evaluation.test.limit={len(examples)}"
        answer = answer or guesser(examples, ability=ability, base="tiny", seed=directory.name)
        overrides = [*QUICK, limit, *overrides]
        write_cell(directory, overrides, pool, {"test": examples}, answer, **more)
        return directory

    return write


@pytest.fixture(scope="module")
def grid(written, tmp_path_factory):
    """Three orderings, three seeds each; `open_first` is better."""
    place = tmp_path_factory.mktemp("grid")
    for ordering, ability in (("open_first", 1.5), ("closed_first", 0.0), ("mixed", 0.0)):
        for seed in (1, 2, 3):
            written(
                place / f"{ordering}-{seed}",
                *(f"curriculum={ordering}", f"seed={seed}"),
                ability=ability,
                phases=("majority", "zero_shot", "blind", "final"),
            )
    return place


@pytest.fixture(scope="module")
def study(grid):
    return read_study([grid], Settings(num_samples=200))


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def scores(directory, metric="exact_match"):
    rows = read_lines(directory / "evaluation" / "final" / "test" / "predictions.jsonl")
    return [float(row[metric]) for row in rows], [row["cluster"] for row in rows]


# Arms.


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


# What may not be compared.


def polluted(directory):
    overlaps = {"image_overlap": 0.5, "item_overlap": 0.25}
    write_json(directory / "contamination.json", {"sets": {"test": overlaps}})


UNEQUAL = {
    "budget": (["training.max_steps=30"], "optimiser steps: 20 and 30"),
    "batch": (
        ["training.accumulation_steps=2"],
        "examples per step: 16 and 32; examples trained on: 320 and 640",
    ),
    "test set": (["data.evaluation.test.limit=40"], "test questions: 60 (.*) and 40"),
    "normaliser": (["evaluation.normalizer=vqa"], "normaliser: medical and vqa"),
    "tolerance": (["evaluation.numeric_tolerance=0.1"], "numeric tolerance: 0.05 and 0.1"),
    "pixels": (["model.max_pixels=8192"], "pixels per image: 4096 to 16384 and 4096 to 8192"),
    "contamination": (
        ["contamination=report"],
        "contaminated pool: 50% of test's pictures .*, 25%",
    ),
}


@pytest.mark.parametrize("name", UNEQUAL)
def test_an_unfair_pair_is_refused_with_the_reason_or_marked(name, written, asked, tmp_path):
    overrides, reason = UNEQUAL[name]
    steps = "training.max_steps=20"
    written(tmp_path / "a", steps, "curriculum=mixed")
    examples = asked[:40] if name == "test set" else asked
    other = [o for o in overrides if not o.startswith("data.")]
    written(tmp_path / "b", steps, "curriculum=open_first", *other, examples=examples)
    if name == "contamination":
        polluted(tmp_path / "b")
    with pytest.raises(UserError, match=reason) as caught:
        read_study([tmp_path])
    assert "--within KEY" in str(caught.value)
    marked = read_study([tmp_path], Settings(allow_unequal=True, num_samples=20))
    assert all(c.unequal for c in marked.comparisons)
    for table in tables(marked):
        assert "†" in markdown(table)
        assert r"$^\dagger$" in latex(table)
    assert '"unequal":"against' in page(marked, read_pictures(()), title="")


def test_a_pool_whose_overlap_was_dropped_is_clean(written, tmp_path):
    for name, ordering in (("a", "mixed"), ("b", "open_first")):
        written(tmp_path / name, f"curriculum={ordering}", "contamination=drop")
        polluted(tmp_path / name)
    comparisons = read_study([tmp_path], Settings(num_samples=20)).comparisons
    assert comparisons
    assert not any(c.unequal for c in comparisons)


def test_within_compares_equal_budgets_only(written, tmp_path):
    for steps in (10, 20):
        for ordering in ("mixed", "open_first"):
            written(
                tmp_path / f"{ordering}{steps}",
                *(f"training.max_steps={steps}", f"curriculum={ordering}"),
            )
    with pytest.raises(UserError, match="optimiser steps: 10 and 20"):
        read_study([tmp_path])
    settings = Settings(within=("training.max_steps",), num_samples=20)
    comparisons = read_study([tmp_path], settings).comparisons
    budgets = {(c.a.rest, c.b.rest) for c in comparisons}
    assert budgets == {("max_steps=10", "max_steps=10"), ("max_steps=20", "max_steps=20")}


def test_other_models_are_never_a_pair(written, tmp_path):
    written(tmp_path / "a", "curriculum=mixed")
    written(tmp_path / "b", "curriculum=mixed", "model.name=other/model")
    study = read_study([tmp_path])
    assert len(study.arms) == 2
    assert study.comparisons == ()


# Runs that are not there, not done, or damaged.


# Verdicts on planned comparisons.

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


def edit_run(directory, **values):
    run = json.loads((directory / "run.json").read_text())
    write_json(directory / "run.json", {**run, **values})


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
    assert "With 3 seeds per arm, this study can show differences of about" in notes
    assert "cannot show that a smaller difference is absent" in notes


# Pairs by seed, identical arms.


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


# What is wrong with the inputs.


def predictions_of(directory):
    path = directory / "evaluation" / "final" / "test" / "predictions.jsonl"
    return path, read_lines(path)


def write_rows_of(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_predictions_that_do_not_give_the_stored_metrics_are_named(written, tmp_path):
    run = written(tmp_path / "run")
    path, rows = predictions_of(run)
    write_rows_of(path, [{**row, "exact_match": not row["exact_match"]} for row in rows])
    notes = read_study([tmp_path]).notes
    assert any("the predictions give exact_match" in note for note in notes)
    write_rows_of(path, [{**rows[0], "prediction": rows[0]["references"][0]}, *rows[1:]])
    expected = not rows[0]["exact_match"]
    notes = read_study([tmp_path]).notes
    assert any("not those of the answers" in note for note in notes) == expected


def test_runs_of_a_clean_grid_raise_no_note_but_the_missing_gate(study):
    assert [note for note in study.notes if "contamination not checked" not in note] == []


def test_a_missing_contamination_record_is_named(written, tmp_path):
    run = written(tmp_path / "run")
    (run / "contamination.json").unlink(missing_ok=True)
    notes = read_study([tmp_path]).notes
    assert any("contamination not checked in 1 of 1 runs" in note for note in notes)


def test_a_seed_that_answers_otherwise_the_second_time_differs(written, tmp_path):
    written(tmp_path / "a", "seed=1")
    written(tmp_path / "b", "seed=1", ability=3.0)
    (note,) = [n for n in read_study([tmp_path]).notes if "not counted again" in n]
    assert "differs from" in note


def test_a_copy_inside_a_grid_is_named(written, tmp_path):
    run = written(tmp_path / "one", "seed=1")
    run_id = json.loads((run / "run.json").read_text())["run_id"]
    entry = {"directory": "one", "run_id": run_id, "overrides": [], "number": 0}
    write_json(tmp_path / "sweep.json", {"jobs": [entry]})
    shutil.copytree(run, tmp_path / "two")
    notes = read_study([tmp_path]).notes
    assert any("two is no cell of its grid" in note for note in notes)


def test_a_copy_under_another_seed_is_named(written, tmp_path):
    run = written(tmp_path / "one", "seed=1")
    shutil.copytree(run, tmp_path / "two")
    config = json.loads((run / "run.json").read_text())["config"]
    edit_run(tmp_path / "two", config={**config, "seed": 2})
    notes = read_study([tmp_path]).notes
    assert any("(seed 2) gives on test exactly the answers of" in note for note in notes)


def test_a_constant_answer_is_named(written, tmp_path):
    written(tmp_path / "run", answer=lambda example, phase: "no")
    notes = read_study([tmp_path]).notes
    assert any("1 of 1 runs answer 'no' to every question of test" in note for note in notes)


def test_runs_of_other_code_are_named(written, tmp_path):
    for seed in (1, 2):
        edit_run(written(tmp_path / str(seed), f"seed={seed}"), code={"sha256": f"{seed}" * 64})
    notes = read_study([tmp_path]).notes
    assert any("runs of different code: 1 by 11111111, 1 by 22222222" in note for note in notes)


def test_places_without_runs_are_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="nowhere is no directory"):
        read_runs([tmp_path / "nowhere"])
    with pytest.raises(UserError, match=r"holds no run: no run\.json and no sweep\.json"):
        read_runs([tmp_path])


def test_what_is_unfinished_or_damaged_is_shown_with_the_reason_and_not_compared(written, tmp_path):
    for name in ("good", "failed", "killed", "cut", "torn"):
        written(tmp_path / name, f"seed={len(name)}")
    values = json.loads((tmp_path / "failed" / "run.json").read_text())
    error = "RuntimeError: CUDA out of memory"
    write_json(tmp_path / "failed" / "run.json", {**values, "state": "failed", "error": error})
    write_json(tmp_path / "killed" / "run.json", {**values, "state": "running"})
    status = {"state": "killed", "error": "killed by signal 9"}
    write_json(tmp_path / "killed" / "status.json", status)
    predictions = tmp_path / "cut" / "evaluation" / "final" / "test" / "predictions.jsonl"
    text = predictions.read_text()
    predictions.write_text(text[: len(text) // 2])
    (tmp_path / "torn" / "run.json").write_text('{"state": "fin')
    entries = [
        {"directory": p, "run_id": "x", "overrides": [p], "number": i}
        for i, p in enumerate(("good", "failed", "killed", "cut", "torn", "never"))
    ]
    entries[0]["run_id"] = json.loads((tmp_path / "good" / "run.json").read_text())["run_id"]
    entries[3]["run_id"] = json.loads((tmp_path / "cut" / "run.json").read_text())["run_id"]
    write_json(tmp_path / "sweep.json", {"jobs": entries})
    runs = {run.directory.name: run for run in read_study([tmp_path]).runs}
    assert {name: run.state for name, run in runs.items()} == {
        "good": "finished",
        "failed": "failed",
        "killed": "killed",
        "cut": "damaged",
        "torn": "damaged",
        "never": "waiting",
    }
    assert runs["failed"].error == error
    assert runs["killed"].error == "killed by signal 9"
    assert f"{predictions}, line " in runs["cut"].error
    assert "torn/run.json is damaged" in runs["torn"].error
    last = tables(read_study([tmp_path]))[-1]
    assert [row[1] for row in last.rows] == ["failed", "killed", "damaged", "damaged", "waiting"]


def test_a_run_of_an_earlier_config_is_outdated(written, tmp_path):
    written(tmp_path / "cell")
    entry = {"directory": "cell", "run_id": "another", "overrides": [], "number": 0}
    write_json(tmp_path / "sweep.json", {"jobs": [entry]})
    assert [run.state for run in read_study([tmp_path]).runs] == ["outdated"]


# Tables, pictures, the compact form.


def test_baselines_stand_beside_every_arm(study):
    results, stages, differences = tables(study)
    assert [row[1] for row in results.rows if "blind" not in row[1]] == [
        *("majority answer", "zero-shot base", "closed_first", "mixed", "open_first"),
    ]
    assert sum("blind" in row[1] for row in results.rows) == 3
    phases = [row[2] for row in stages.rows if row[1] == "open_first"]
    assert phases == ["zero shot", "after open", "final"]
    assert len(differences.rows) == 2 * 3


def test_published_values_stand_beside_ours_with_the_difference_in_protocol(written, tmp_path):
    base = "model.name=Qwen/Qwen3-VL-2B-Instruct"
    written(tmp_path / "run", base, "training=qwen3_vl_2b", "training.max_steps=60")
    written(tmp_path / "other", "seed=1")  # a base without a published row
    (table,) = [t for t in tables(read_study([tmp_path])) if t.title.startswith("published")]
    ((arm, exact_match, *_, protocol),) = table.rows
    assert "Qwen3-VL-2B" in arm
    assert exact_match.startswith("0.3503; 0.")
    assert "optimiser steps: 40, here 60" in protocol
    assert "test questions: 451, here 60" in protocol
    assert "LoRA dropout: 0.05, here 0.0" in protocol
    assert "learning rate" not in protocol
    assert NOT_STATED in "".join(table.notes)


def test_latex_and_markdown_escape_what_would_break_them(study):
    (table, *_) = tables(study)
    table = replace(table, rows=(("a_b & 50%", "x|y"),))
    assert r"a\_b \& 50\%" in latex(table)
    assert "x\\|y" in markdown(table)


def test_brackets_in_a_cell_reach_the_terminal(study):
    (table, *_) = tables(study)
    table = replace(table, title="[bold] title", rows=(("modules=[q_proj] \\", "[/red]"),))
    terminal = console()
    with terminal.capture() as capture:
        terminal.print(rich_table(table))
    for text in ("[bold] title", "modules=[q_proj] \\", "[/red]"):
        assert text in capture.get()


def test_each_picture_is_there_once_and_belongs_to_its_questions(study, asked):
    pictures = read_pictures(study.arms)
    assert set(pictures.urls) == {name for example in asked for name in example.image_ids}
    assert all(pictures.shown["+".join(e.image_ids)] == e.image_ids for e in asked)
    assert all(url.startswith("data:image/jpeg;base64,/9j/") for url in pictures.urls.values())


def test_data_that_is_gone_costs_its_pictures_and_not_the_report(written, tmp_path):
    written(tmp_path / "run", "data=vqa_rad", f"data.path={tmp_path / 'gone'}")
    pictures = read_pictures(read_study([tmp_path]).arms)
    assert pictures.urls == {}
    assert "no pictures of test" in pictures.notes[0]
    assert str(tmp_path / "gone") in pictures.notes[0]


def test_the_compact_form_holds_every_prediction(study, grid):
    keys = Texts()
    form = encode(study.arms, "test", read_pictures(study.arms).shown, keys)
    columns = [c for c in form["columns"] if c["phase"] == "final"]
    assert len(columns) == 9
    assert sum(c["phase"] == "zero_shot" for c in form["columns"]) == 1
    for column in columns:
        rows = read_lines(Path(column["run"]) / "evaluation" / "final" / "test/predictions.jsonl")
        by_id = {row["id"]: row for row in rows}
        for question, options, code in zip(
            form["questions"], form["options"], column["codes"], strict=True
        ):
            text, *values = options[code]
            row = by_id[question[0]]
            assert form["texts"][text] == row["prediction"]
            assert [form["texts"][r] for r in question[2]] == row["references"]
            assert values[form["metrics"].index("exact_match")] == row["exact_match"]
            assert values[form["metrics"].index("f1")] == pytest.approx(row["f1"], abs=1e-4)


def test_a_question_that_a_run_was_not_asked_has_no_answer_of_it(written, asked, tmp_path):
    written(tmp_path / "a", "curriculum=mixed", examples=asked[:30])
    written(tmp_path / "b", "curriculum=open_first", examples=asked[20:60])
    arms = read_study([tmp_path], Settings(allow_unequal=True, num_samples=20)).arms
    form = encode(arms, "test", {}, Texts())
    a, b = (c["codes"] for c in form["columns"] if c["phase"] == "final")
    assert [code >= 0 for code in a] == [True] * 30 + [False] * 30
    assert [code >= 0 for code in b] == [False] * 20 + [True] * 40
    rows = read_lines(tmp_path / "b" / "evaluation" / "final" / "test" / "predictions.jsonl")
    answers = [form["texts"][form["options"][place][b[place]][0]] for place in range(20, 60)]
    assert answers == [row["prediction"] for row in rows]


def test_an_answer_cannot_break_out_of_the_page(written, tmp_path):
    rude = '</script><script>alert("{{study}}")</script>'
    written(tmp_path / "run", answer=lambda example, phase: rude)
    text = page(read_study([tmp_path]), read_pictures(()), title="</title>")
    assert rude not in text
    assert text.count("</script>") == 4
    assert text.count("</title>") == 1
    data = text.split('id="answers-data">')[1].split("</script>")[0]
    assert rude in json.loads(data)["sets"][0]["texts"]


# The command on real runs.


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Two curricula x two seeds through the command line, and the report of it."""
    place = tmp_path_factory.mktemp("real")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "HYDRA_"))}
    overrides = ["experiment=smoke", "data.evaluation.test.limit=24", "evaluation.blind=true"]
    answer = subprocess.run(
        [
            *(sys.executable, str(ROOT / "train.py"), "-m", *overrides, *QUICK),
            *("curriculum=open_first,mixed", "seed=1,2", "hydra.launcher.warm=true"),
            "hydra.sweep.dir=grid",
        ],
        cwd=place,
        env={**environment, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    report = subprocess.run(
        [sys.executable, "-m", "medvqa.cli", "report", "grid"],
        cwd=place,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert report.returncode == 0, report.stderr
    return place / "grid", report.stdout


@pytest.mark.slow
def test_the_command_leaves_every_file(real):
    grid, output = real
    names = {str(p.relative_to(grid / "report")) for p in (grid / "report").rglob("*.*")}
    plots = ("grid_test", "differences_test", "forgetting_test", "loss", "cost")
    assert names >= {
        *("results.csv", "comparisons.csv", "comparisons.json", "runs.csv", "tables.md"),
        "verdicts.csv",
        *("tables.tex", "report.html"),
        *(f"plots/{name}.{suffix}" for name in plots for suffix in ("png", "svg")),
    }
    assert "open_first \N{MINUS SIGN} mixed" in output
    assert "4 runs: 4 finished; 2 arms" in output


@pytest.mark.slow
def test_a_result_is_the_mean_of_its_runs_metrics_and_names_them(real):
    grid, _ = real
    checked = 0
    for row in rows_of(grid / "report" / "results.csv"):
        means = []
        for run in row["runs"].split(";"):
            path = grid.parent / run / "evaluation" / row["phase"] / row["set"] / "metrics.json"
            summary = json.loads(path.read_text())["summary"]
            means.append(summary[row["group"]][row["metric"]]["mean"])
        assert float(row["mean"]) == pytest.approx(np.mean(means))
        assert [float(m) for m in row["run_means"].split(";")] == pytest.approx(means)
        checked += 1
    assert checked >= 60


@pytest.mark.slow
def test_blind_the_question_alone_decides_the_answer(real):
    grid, _ = real
    repeats = 0
    for path in grid.glob("*/evaluation/blind/test/predictions.jsonl"):
        answers = {}
        for row in read_lines(path):
            repeats += row["question"] in answers
            assert answers.setdefault(row["question"], row["prediction"]) == row["prediction"]
        protocol = json.loads(path.with_name("metrics.json").read_text())
        assert protocol["images"] == "removed"
        final = json.loads((path.parents[2] / "final" / "test" / "metrics.json").read_text())
        assert final["images"] == "shown"
    assert repeats > 10


def test_a_mistake_leaves_with_code_2_and_writes_nothing(written, tmp_path, capsys):
    written(tmp_path / "a", "curriculum=mixed", "training.max_steps=10")
    written(tmp_path / "b", "curriculum=open_first", "training.max_steps=20")
    with pytest.raises(SystemExit) as left:
        guarded(lambda: main_report([str(tmp_path)]))
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("medvqa: tiny / mixed max_steps=10 and tiny / open_first max_steps=20")
    assert not (tmp_path / "report").exists()
