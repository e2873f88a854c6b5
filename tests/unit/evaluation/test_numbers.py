"""Numbers are read from answers as a physician would, by hand."""

import pytest

from medvqa.config.evaluation import Normalizer, Tolerance
from medvqa.evaluation.metrics import numeric_match
from medvqa.evaluation.normalize import normalize
from medvqa.evaluation.numbers import numbers
from medvqa.evaluation.units import UNITS


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
        ("5th rib", "5th rib", None),
        ("5-th rib", "5", False),
        ("5 cm^2", "500 mm2", True),
        ("the 15th rib", "15", False),
        ("第5肋", "第5肋", None),
        ("right", "left", None),
        ("1,5 cm", "15 mm", True),
        ("1.000,5 ml", "1000.5 ml", True),
        ("1\u202f000", "1000", True),
        ("1 000", "1000", False),  # two numbers
        ("\u0663", "3", True),
        ("one hundred and five", "105", True),
        ("two thousand three hundred", "2300", True),
        ("a hundred", "100", True),
        ("two three", "2", True),  # two numbers, not one
        ("minus five", "-5", True),
        ("2\u00bd cm", "2.5 cm", True),
        ("3/4", "0.75", True),
        ("120/80", "120", True),  # a pressure is no fraction
        ("1.2\u00d710^3", "1200", True),
        ("10\u207b\u00b3", "0.001", True),
        ("1.5e3 mg", "1.5 g", True),
        ("10\u00b3", "103", False),
        ("3-4 cm", "3 mm", False),  # both ends have the unit
        ("3 to 4 cm", "30 mm", True),
        ("10-20 minutes", "600 s", True),
        ("121 bpm", "120 bpm", True),  # a measurement
        ("98 °F", "98 °C", False),
        ("37°", "37 °C", True),
        ("5 cm\u00b2", "500 mm\u00b2", True),
        ("5 mm2", "5 mm", False),
        ("5 cm3", "5 ml", True),
        ("5 mmHg", "5 mm", False),
        ("5-cm", "50 mm", True),
        ("5 centimetres", "50 mm", True),
        ("5 \u00b5m", "0.005 mm", True),
        ("共5个", "5", True),
        ("3\u200b.5", "3.5", True),
        ("9" * 400 + " cm", "5 cm", False),
        ("5 cm", "9" * 400 + " cm", None),  # no computer holds that number
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


@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_is_read_with_or_without_a_space_and_has_one_form(unit):
    assert normalize(f"5{unit}", Normalizer.medical) == normalize(f"5 {unit}", Normalizer.medical)
    for text in (f"5{unit}", f"5-{unit}", f"5-7 {unit}"):
        assert (numbers(text)[0].dimension, numbers(text)[0].scale) == UNITS[unit]
