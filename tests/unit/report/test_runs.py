"""Whatever value of a run's files is lost or of another type costs one line, never a traceback."""

import copy
import json

import pytest

from medvqa.config.errors import UserError
from medvqa.report.inputs import check_inputs
from medvqa.report.rows import run_rows
from medvqa.report.study import read_study
from medvqa.report.tables import tables
from tests.synthetic_grid import write_cell

LOST = object()
DEPTH = 3  # a config's options are checked by its types, tests/unit/tracking/test_shape.py
FILES = ("run.json", "metrics.jsonl", "evaluation/final/test/metrics.json",
         "evaluation/final/test/predictions.jsonl")  # fmt: skip


@pytest.fixture(scope="module")
def cell(phantoms, tmp_path_factory):
    directory = tmp_path_factory.mktemp("damage") / "cell"
    overrides = ["evaluation.bertscore.enabled=false", "training.max_steps=2"]
    sets = {"test": phantoms[:6]}
    write_cell(directory, overrides, phantoms, sets, lambda e, _: "yes", phases=("final",))
    return directory


def places(values, above=()):
    for key, value in values.items() if isinstance(values, dict) else enumerate(values[:1]):
        yield (*above, key)
        if isinstance(value, dict | list) and len(above) < DEPTH:
            yield from places(value, (*above, key))


def damaged(values, place, value):
    values = copy.deepcopy(values)
    inner = values
    for key in place[:-1]:
        inner = inner[key]
    if value is LOST:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return values


def shown(cell):
    """Return the errors of a report; reading and showing must raise nothing."""
    study = read_study([cell])
    tables(study)
    run_rows(study)
    check_inputs(study.runs, study.arms, [cell])
    return [run.error for run in study.runs if run.error]


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_value_ends_in_one_line_that_names_the_file(cell, name):
    path = cell / name
    text = path.read_text(encoding="utf-8")
    first, newline, rest = text.partition("\n") if name.endswith("l") else (text, "", "")
    values, errors = json.loads(first), 0
    try:
        for place in places(values):
            for value in (LOST, None, "x", []):
                changed = json.dumps(damaged(values, place, value))
                path.write_text(changed + newline + rest, encoding="utf-8")
                try:
                    lines = shown(cell)
                except UserError as error:
                    lines = [str(error)]
                errors += len(lines)
                assert all(name in line and "\n" not in line for line in lines), (place, lines)
    finally:
        path.write_text(text, encoding="utf-8")
    assert errors > 1 or name == "metrics.jsonl"  # which only the figure of the loss reads


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("exact_match", None, "exact_match is None, not true or false"),
        ("exact_match", LOST, "exact_match is missing"),
        ("id", LOST, "id is missing"),
        ("references", "yes", "references is 'yes', not a list"),
        ("logprob_mean", "high", "logprob_mean is 'high', not a number"),
    ],
)
def test_a_damaged_answer_is_named_by_file_line_and_fix(cell, field, value, reason):
    path = cell / FILES[-1]
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    lines[2] = json.dumps(damaged(json.loads(lines[2]), (field,), value))
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        assert shown(cell) == [f"{path}, line 3 is damaged: {reason}; say fresh=true to start over"]
    finally:
        path.write_text(text, encoding="utf-8")
    assert shown(cell) == []
