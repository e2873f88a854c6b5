"""Normalisers do what docs/metrics.md says, case by case."""

import pytest

from medvqa.config.evaluation import Normalizer
from medvqa.evaluation.normalize import normalize, tokens, vqa_v2


@pytest.mark.parametrize(
    ("text", "normalizer", "expected"),
    [
        ("The Right  Lung.", "squad", "right lung"),
        ("an X-ray", "squad", "xray"),
        ("1.5 cm", "squad", "15 cm"),  # to the letter of the script
        ("The Right Lung.", "punctuation", "the right lung"),
        ("肺。", "squad", "肺"),
        ("心脏、肺", "squad", "心脏肺"),
        ("心脏，肺", "squad", "心脏肺"),
        ("“patient’s” lung", "squad", "patients lung"),
        ("ＣＴ", "squad", "ct"),
    ],
)
def test_each_normaliser_removes_what_it_promises(text, normalizer, expected):
    assert normalize(text, Normalizer(normalizer)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.5 cm.", "1.5 cm"),
        ("15 cm", "15 cm"),
        ("-5", "-5"),
        ("\u22125 HU", "-5 hu"),  # the minus sign of word processors
        ("1,000", "1000"),
        ("2.0", "2.0"),
        ("120/80 mmHg", "120 80 mmhg"),
        ("3-4 cm", "3 4 cm"),
        ("an X-ray", "xray"),
        ("5mg", "5 mg"),
        ("T2-weighted", "t2weighted"),
        ("the vitamin A", "vitamin a"),
        ("A nodule.", "nodule"),
        ("-", "-"),
    ],
)
def test_the_medical_normaliser_keeps_points_and_signs_of_numbers(text, expected):
    assert normalize(text, Normalizer.medical) == expected


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("1,5 cm", "1.5 cm"),  # a decimal comma
        ("0,5", "0.5"),
        ("1.000,5 ml", "1000.5 ml"),
        ("1\u202f000", "1000"),  # groups of digits
        ("1'000", "1000"),
        ("\u0661\u066b\u0665", "1.5"),  # Arabic digits and decimal point
        ("３．５ｃｍ", "3.5 cm"),
        (".5", "0.5"),
        ("3.5\u00d72cm", "3.5 x 2 cm"),
        ("12mmx3mm", "12 mm x 3 mm"),
        ("5-mm", "5 mm"),
        ("5\u00b5g", "5 \u03bcg"),
        ("10%", "10 percent"),
        ("\u00bd", "1/2"),
        ("5 cm\u00b2", "5 cm2"),
        ("> 5 cm", ">5 cm"),
        ("\u2264 5", "<= 5"),
        ("fi\u200bbro\u00adsis", "fibrosis"),  # invisible characters
        ("\ufeffyes\u200e", "yes"),
        ("cafe\u0301", "caf\u00e9"),
        ("crohn\u00b4s", "crohn\u02bcs"),
        ("STRASSE", "stra\u00dfe"),
    ],
)
def test_spellings_of_one_answer_are_equal(text, same):
    assert normalize(text, Normalizer.medical) == normalize(same, Normalizer.medical)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("1,5 cm", "15 cm"),
        ("1e-3", "1e3"),
        ("10\u00b3", "103"),
        ("10\u207b\u00b3", "10\u00b3"),
        ("2\u00bd", "21/2"),
        ("< 5 cm", "> 5 cm"),
        ("\u2264 5 cm", "< 5 cm"),
        ("HER2+", "HER2-"),
        ("10%", "10"),
        ("1 2", "12"),
    ],
)
def test_answers_of_another_meaning_stay_apart(text, other):
    assert normalize(text, Normalizer.medical) != normalize(other, Normalizer.medical)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", "0"),
        ("1,000", "1000"),
        ("eleven", "eleven"),  # VQA v2's list ends at ten
        ("ten", "10"),
        ("5:30", "5:30"),
        ("Two lesions, 3.5 cm.", "2 lesions 3.5 cm"),
        ("X-ray", "x ray"),
        ("left- right", "left right"),  # at an edge a mark is removed, else it becomes a space
        ("it isnt there", "it isn't there"),
        ("cant", "can't"),
        ("were well", "were well"),
        ("youd've", "you'd've"),
        ("wouldn'tve", "wouldn't've"),
        ("somebody'd", "somebodyd"),
        ("U.S.", "us"),
    ],
)
def test_vqa_follows_the_published_rules_with_their_slips(text, expected):
    assert vqa_v2(text) == expected


def test_texts_of_removed_words_alone_stay_different():
    for normalizer in Normalizer:
        assert normalize("?", normalizer) != normalize("!", normalizer)
    assert normalize("a", Normalizer.squad) != normalize("the", Normalizer.squad)


def test_characters_without_spaces_between_words_are_tokens():
    assert tokens("左侧肺 ct") == ["左", "侧", "肺", "ct"]
    assert tokens("left lung") == ["left", "lung"]
