"""Numbers are read from answers as a physician would, by hand."""

import pytest

from medvqa.config.evaluation import Tolerance
from medvqa.evaluation.metrics import numeric_match
from medvqa.evaluation.numbers import numbers


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("3.4 cm", "3.4cm", True),
        ("34 mm", "3.4 cm", True),
        ("3.5 cm", "3.4 cm", True),  # 2.9 % off
        ("3.6 cm", "3.4 cm", False),  # 5.9 % off
        ("3.9kg", "3.1kg", False),
        ("1.5T", "1.5 tesla", True),
        ("1.5T", "1", False),
        ("5mg", "5 mg", True),
        ("5 mg", "5 ml", False),  # another dimension
        ("5000 mg", "5g", True),
        ("120ml", "120 ml", True),
        ("two", "2", True),
        ("Two.", "2", True),
        ("twenty-one", "21", True),
        ("Thirty five lesions", "35", True),
        ("There are (two)", "2", True),
        ("twenty", "20", True),
        ("3.4", "3.4 cm", True),  # one side names no unit
        ("1,200", "1200", True),
        ("21", "20", False),  # a count
        ("21 mm", "20 mm", True),  # a measurement
        ("12x3 mm", "12 mm", True),
        ("12 x 3 mm", "1.2 cm", True),
        ("12 \u00d7 3 mm", "12 mm", True),
        ("\u22125", "5", False),
        ("\u22125", "-5", True),
        ("\uff15 mm", "5 mm", True),
        ("no idea", "3", False),
        ("L4", "vertebra L4", None),  # names, not numbers
        ("L4-5", "L4-L5", None),
        ("COVID-19", "COVID-19", None),
        ("right", "left", None),
    ],
)
def test_numbers_match_within_the_tolerance(prediction, reference, expected):
    assert numeric_match(prediction, [reference], 0.05) is expected


def test_an_absolute_tolerance_is_a_difference_for_counts_too():
    assert numeric_match("2.01", ["2"], 0.011, Tolerance.absolute) is True
    assert numeric_match("2.1", ["2"], 0.011, Tolerance.absolute) is False


def test_a_products_factors_share_the_last_unit():
    assert [(n.value, n.dimension) for n in numbers("12x3 mm and 7")] == [
        (12.0, "length"),
        (3.0, "length"),
        (7.0, None),
    ]
