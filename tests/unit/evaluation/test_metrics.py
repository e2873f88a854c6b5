"""Scores of single answers, by hand."""

import pytest

from medvqa.config.evaluation import Normalizer
from medvqa.evaluation.metrics import (
    closed_answer,
    exact_match,
    is_yes_or_no,
    token_f1,
    token_recall,
    yes_or_no,
)

SQUAD, MEDICAL = Normalizer.squad, Normalizer.medical


def test_texts_of_removed_words_alone_stay_different():
    assert not exact_match("a", ["the"], SQUAD)
    assert exact_match("The", ["the"], SQUAD)
    assert not exact_match("", ["?"], SQUAD)


def test_any_reference_makes_an_exact_match():
    assert exact_match("ct.", ["mri", "CT"], SQUAD)
    assert not exact_match("ct scan", ["mri", "CT"], SQUAD)


def test_a_decimal_point_and_a_sign_make_another_answer():
    assert not exact_match("15 cm", ["1.5 cm"], MEDICAL)
    assert token_f1("15 cm", ["1.5 cm"], MEDICAL) == 0.5
    assert not exact_match("-5", ["5"], MEDICAL)
    assert exact_match("1.5 cm.", ["1.5 cm"], MEDICAL)


def test_f1_counts_tokens_with_multiplicity():
    # shared {right: 1, lung: 1} = 2; prediction has 3 tokens, reference 2: 2 * 2 / 5
    assert token_f1("right right lung", ["right lung"], SQUAD) == pytest.approx(0.8)
    assert token_f1("left", ["right lung"], SQUAD) == 0
    assert token_f1("", ["right"], SQUAD) == 0
    assert token_f1("lung", ["heart", "right lung"], SQUAD) == pytest.approx(2 / 3)


@pytest.mark.parametrize("normalizer", list(Normalizer))
def test_f1_of_chinese_counts_characters(normalizer):
    assert token_f1("左肺", ["左侧肺"], normalizer) == pytest.approx(2 * 2 / 5)
    assert token_recall("左侧肺", ["肺"], normalizer) == 1


def test_recall_is_the_share_of_the_reference():
    assert token_recall("the right upper lobe", ["right lobe"], SQUAD) == 1
    assert token_recall("right", ["right lobe"], SQUAD) == 0.5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes, there is.", "yes"),
        ("no", "no"),
        ("ｙｅｓ", "yes"),
        ("答案是yes。", "yes"),
        ("a nodule", None),
        ("abnormal, not known", None),
        ("yes and no", None),
        ("", None),
    ],
)
def test_yes_and_no_are_whole_words(text, expected):
    assert yes_or_no(text) == expected


def test_a_reference_is_yes_or_no_whatever_its_marks():
    assert all(map(is_yes_or_no, ["Yes.", " no ", "ＹＥＳ", "No!"]))
    assert not any(map(is_yes_or_no, ["yes, left", "none", ""]))


def test_closed_answers_are_read_or_unreadable():
    assert closed_answer("No, it is normal", ["no"], SQUAD) is True
    assert closed_answer("yes", ["No"], SQUAD) is False
    assert closed_answer("a nodule", ["no"], SQUAD) is None
    assert closed_answer("Left.", ["left"], SQUAD) is True
    assert closed_answer("left side", ["left"], SQUAD) is False
