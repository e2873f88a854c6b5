"""Options are read from answers as a reader would."""

import pytest

from medvqa.config.errors import UserError
from medvqa.evaluation.choice import correct_option, read_choice

LUNGS = ("left lung", "right lung", "both lungs", "neither")
BLOOD = ("A", "B", "AB", "O")


@pytest.mark.parametrize(
    ("answer", "options", "expected"),
    [
        ("B", LUNGS, (1, "letter")),
        ("b", LUNGS, (1, "letter")),
        ("(C)", LUNGS, (2, "letter")),
        ("B. right lung", LUNGS, (1, "letter")),
        ("The answer is D.", LUNGS, (3, "letter")),
        ("Answer: C", LUNGS, (2, "letter")),
        ("Right lung.", LUNGS, (1, "text")),
        ("It is the left lung", LUNGS, (0, "text")),
        ("not the left lung but the right lung", LUNGS, (1, "text")),  # the last one
        ("A lesion in both lungs", LUNGS, (2, "text")),  # "A" is an article here
        ("lungs, both", LUNGS, (2, "nearest")),
        ("AB", BLOOD, (2, "text")),
        ("B", BLOOD, (1, "text")),
        ("12", ("1", "2", "12"), (2, "text")),
    ],
)
def test_an_answer_names_its_option(answer, options, expected):
    assert tuple(read_choice(answer, options)) == expected


def test_a_reference_is_a_text_or_a_letter_or_refused():
    assert correct_option(["Right lung."], LUNGS) == 1
    assert correct_option(["D"], LUNGS) == 3
    assert correct_option(["B"], ("AB", "B")) == 1
    with pytest.raises(UserError, match="is none of left lung"):
        correct_option(["E"], LUNGS)
