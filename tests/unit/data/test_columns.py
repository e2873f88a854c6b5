"""Which column holds what: given, known by common names, or a line to paste."""

import logging
import re

import pytest

from medvqa.config.errors import UserError
from medvqa.data.columns import cell, chosen_columns

PASTED = re.compile(r"'data\.columns=\{(.+)\}'")


def test_common_names_are_used_and_shown(caplog):
    with caplog.at_level(logging.INFO):
        chosen = chosen_columns({}, ["Img_Path", "Query", "label", "split"], "table")
    assert chosen == {"image": "Img_Path", "question": "Query", "answer": "label"}
    assert "image: Img_Path, question: Query, answer: label" in caplog.text


def test_a_given_column_wins_and_null_leaves_a_role_out():
    present = ["image", "question", "answer", "id", "reply"]
    chosen = chosen_columns({"answer": "reply", "id": None}, present, "table")
    assert chosen == {"image": "image", "question": "question", "answer": "reply"}


def test_a_column_serves_one_role_only():
    with pytest.raises(UserError, match="no column for answer"):
        chosen_columns({"question": "label"}, ["image", "label"], "table")


@pytest.mark.parametrize(
    ("given", "present", "message"),
    [
        ({}, ["scan", "ask", "reply"], "no column for image, question, answer; it has scan, ask"),
        ({"question": "a.b"}, ["image", "answer"], r"no column for question \(a\.b\)"),
        ({"question": {"txt": "?"}}, ["image", "answer"], "no column for question"),
    ],
)
def test_a_mismatch_names_the_columns(given, present, message):
    with pytest.raises(UserError, match=message):
        chosen_columns(given, present, "table")


def test_the_line_to_paste_is_a_setting_that_fits_the_table():
    present = ["scan", "ask", "reply"]
    with pytest.raises(UserError) as caught:
        chosen_columns({}, present, "table")
    line = PASTED.search(str(caught.value))[1]
    given = dict(pair.split(": ") for pair in line.split(", "))
    assert chosen_columns(given, present, "table") == {
        "image": "scan",
        "question": "ask",
        "answer": "reply",
    }


def test_a_spec_reaches_into_cells():
    row = {"a.b": 1, "qa": {"texts": ["x", "y"]}, "name": "p7", "c": "", "d": "z"}
    assert cell(row, "a.b") == 1
    assert cell(row, "qa.texts.1") == "y"
    assert cell(row, "qa.texts.7") is None
    assert cell(row, "{name}.jpg") == "p7.jpg"
    assert cell(row, ["c", "d", "e"]) == ["z"]
    assert cell(row, {"text": "Describe it."}) == "Describe it."
