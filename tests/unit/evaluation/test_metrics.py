"""Scores of single answers, by hand."""

import pytest

from medvqa.config.evaluation import Normalizer
from medvqa.evaluation.metrics import (
    closed_answer,
    exact_match,
    normalize,
    numeric_match,
    token_f1,
    token_recall,
    yes_or_no,
)

SQUAD = Normalizer.squad


@pytest.mark.parametrize(
    ("text", "normalizer", "expected"),
    [
        ("The Right  Lung.", "squad", "right lung"),
        ("an X-ray", "squad", "xray"),
        ("The Right Lung.", "punctuation", "the right lung"),
        ("Two lesions, 3.5 cm.", "vqa", "2 lesions 3.5 cm"),
        ("The X-ray", "vqa", "x ray"),
        ("it isnt there", "vqa", "it isn't there"),
        ("1,000", "vqa", "1,000"),
        # Words that only look like contractions keep their meaning.
        ("were well", "vqa", "were well"),
    ],
)
def test_normalisers_do_what_their_table_says(text, normalizer, expected):
    assert normalize(text, Normalizer(normalizer)) == expected


def test_texts_of_removed_words_alone_stay_different():
    assert not exact_match("a", ["the"], SQUAD)
    assert exact_match("The", ["the"], SQUAD)
    assert not exact_match("", ["?"], SQUAD)


def test_any_reference_makes_an_exact_match():
    assert exact_match("ct.", ["mri", "CT"], SQUAD)
    assert not exact_match("ct scan", ["mri", "CT"], SQUAD)


def test_f1_counts_tokens_with_multiplicity():
    # shared {right: 1, lung: 1} = 2; prediction has 3 tokens, reference 2: 2 * 2 / 5
    assert token_f1("right right lung", ["right lung"], SQUAD) == pytest.approx(0.8)
    assert token_f1("left", ["right lung"], SQUAD) == 0
    assert token_f1("", ["right"], SQUAD) == 0
    assert token_f1("lung", ["heart", "right lung"], SQUAD) == pytest.approx(2 / 3)


def test_recall_is_the_share_of_the_reference():
    assert token_recall("the right upper lobe", ["right lobe"], SQUAD) == 1
    assert token_recall("right", ["right lobe"], SQUAD) == 0.5


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("3.4 cm", "3.4cm", True),
        ("34 mm", "3.4 cm", True),
        ("3.5 cm", "3.4 cm", True),  # 2.9 % off
        ("3.6 cm", "3.4 cm", False),  # 5.9 % off
        ("two", "2", True),
        ("3.4", "3.4 cm", True),  # one side names no unit
        ("1,200", "1200", True),
        ("no idea", "3", False),
        ("L4", "vertebra L4", None),  # a name, not a number
        ("right", "left", None),
    ],
)
def test_numbers_match_within_the_tolerance(prediction, reference, expected):
    assert numeric_match(prediction, [reference], 0.05) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes, there is.", "yes"),
        ("no", "no"),
        ("a nodule", None),
        ("abnormal, not known", None),
        ("yes and no", None),
        ("", None),
    ],
)
def test_yes_and_no_are_whole_words(text, expected):
    assert yes_or_no(text) == expected


def test_closed_answers_are_read_or_unreadable():
    assert closed_answer("No, it is normal", ["no"], SQUAD) is True
    assert closed_answer("yes", ["No"], SQUAD) is False
    assert closed_answer("a nodule", ["no"], SQUAD) is None
    assert closed_answer("Left.", ["left"], SQUAD) is True
    assert closed_answer("left side", ["left"], SQUAD) is False
