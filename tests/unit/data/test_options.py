"""Options in every shape that data sets use, and the one that an answer names."""

import pytest

from medvqa.config.errors import UserError
from medvqa.data.options import options_of, right_option

TEXTS = ("CT", "MRI", "X-ray")


@pytest.mark.parametrize(
    "value",
    [
        ["CT", "MRI", "X-ray"],
        {"B": "MRI", "A": "CT", "C": "X-ray", "D": None},
        [{"letter": "A", "content": "CT"}, {"content": "MRI"}, {"content": "X-ray"}],
        "['CT', 'MRI', 'X-ray']",
        '["CT", "MRI", "X-ray"]',
        [" A:CT", " B:MRI", " C:X-ray"],
        ["(A) CT", "(B) MRI", "(C) X-ray"],
        ["A. CT", "B. MRI", "C. X-ray"],
    ],
)
def test_every_shape_gives_the_texts_without_letters(value):
    assert options_of(value) == TEXTS


@pytest.mark.parametrize("value", [None, "", [], {}, "[]"])
def test_a_question_may_have_none(value):
    assert options_of(value) == ()


def test_a_text_that_only_begins_like_a_letter_stays_whole():
    assert options_of(["B: cells", "T: cells"]) == ("B: cells", "T: cells")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["CT"], "options must be two or more different texts"),
        (["CT", "ct"], "different texts"),
        (["CT", " "], "different texts"),
        (["CT", None], "an option is NoneType, not a text"),
        ("CT or MRI", "options are no list: 'CT or MRI'"),
        (7, "options are int, not a list"),
    ],
)
def test_what_is_no_list_of_options_is_named(value, message):
    with pytest.raises(UserError, match=message):
        options_of(value)


@pytest.mark.parametrize("answer", ["MRI", "mri.", "B", "b", "(B)", "B.", "B: MRI", "B. mri"])
def test_an_answer_is_a_text_or_a_letter(answer):
    assert right_option(answer, TEXTS) == "MRI"


def test_a_text_counts_before_a_letter():
    assert right_option("B", ("A", "C", "B")) == "B"


@pytest.mark.parametrize("answer", ["D", "PET", "?"])
def test_an_answer_outside_the_options_is_named(answer):
    with pytest.raises(UserError, match="is none of the options"):
        right_option(answer, TEXTS)
