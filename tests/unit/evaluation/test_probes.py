"""Each probe asks what a model that invents nothing answers in one way only."""

import io

import numpy as np
import pytest
from PIL import Image

from medvqa.config.evaluation import ProbeName
from medvqa.data.example import Example
from medvqa.data.image import image_size
from medvqa.evaluation.probes import leading_text, probe_questions
from tests.conftest import PngImage

NAMES = list(ProbeName)


def ask(name, examples, seed=0):
    return probe_questions([ProbeName(name)], examples, seed=seed)[ProbeName(name)]


def example(number, question="Which organ is shown?", answer="brain", **changes) -> Example:
    picture = PngImage(f"picture {number}", np.zeros((20, 30 + number), np.uint8))
    values = {
        "id": f"q{number}",
        "images": (picture,),
        "image_ids": (f"p{number}",),
        "question": question,
        "answers": (answer,),
        "answer_type": "closed" if answer in ("yes", "no") else "open",
        "type_origin": "official",
        "source": "test",
        "split": "test",
    }
    return Example(**{**values, **changes})


def test_a_blank_picture_is_grey_and_as_large_as_the_one_it_replaces(phantoms):
    for asked, original in zip(ask("blank", phantoms[:3]), phantoms[:3], strict=True):
        for blank, shown in zip(asked.example.images, original.images, strict=True):
            assert image_size(blank) == image_size(shown)
            assert Image.open(io.BytesIO(blank.read())).getextrema() == (128, 128)
        assert asked.example.question == original.question
        assert asked.cluster == "+".join(original.image_ids)


def test_another_patients_picture_is_none_of_the_questions_own(phantoms):
    probes = ask("other_patient", phantoms)
    assert len(probes) == len(phantoms)
    for asked, original in zip(probes, phantoms, strict=True):
        assert not set(asked.example.image_ids) & set(original.image_ids)
        assert len(asked.example.images) == len(original.images)


def test_the_seed_alone_chooses_the_other_picture(phantoms):
    def chosen(examples, seed):
        return {a.original_id: a.example.image_ids for a in ask("other_patient", examples, seed)}

    first = chosen(phantoms, 1)
    assert first == chosen(phantoms[::-1], 1)
    assert first != chosen(phantoms, 2)
    by_picture = {}
    for original in phantoms:
        by_picture.setdefault(original.image_ids, set()).add(first[original.id])
    assert all(len(others) == 1 for others in by_picture.values())


@pytest.mark.parametrize(
    ("question", "toward_yes", "toward_no"),
    [
        ("Is there a fracture?", "There is a fracture, isn't there?",
         "There isn't a fracture, is there?"),
        ("Are there any masses ?", "There are masses, aren't there?",
         "There aren't any masses, are there?"),
        ("Are there at least 2 lesions?", "There are at least 2 lesions, aren't there?",
         "There aren't at least 2 lesions, are there?"),
        ("Is this an MRI?", "This is an MRI, isn't it?", "This isn't an MRI, is it?"),
        ("Was this taken with CT?", "This was taken with CT, wasn't it?",
         "This wasn't taken with CT, was it?"),
        ("Is this lesion large?", "Is this lesion large? The answer is yes, isn't it?",
         "Is this lesion large? The answer is no, isn't it?"),
    ],
)  # fmt: skip
def test_a_leading_question_suggests_one_answer(question, toward_yes, toward_no):
    assert leading_text(question, "yes") == toward_yes
    assert leading_text(question, "no") == toward_no


def test_only_the_lead_against_the_truth_is_false():
    asked = ask("leading", [example(1, "Is there a mass?", "yes"), example(2)])
    assert [(a.example.id, a.falsehood) for a in asked] == [
        ("q1|leading_yes", ""),
        ("q1|leading_no", "no"),
    ]


def test_a_fake_question_is_asked_twice_per_picture(phantoms):
    asked = ask("fake", phantoms)
    pictures = {original.image_ids for original in phantoms}
    assert len(asked) == 2 * len(pictures)
    assert {a.falsehood for a in asked} == {"closed", "open"}
    assert len({a.example.id for a in asked}) == len(asked)


def test_none_of_the_above_replaces_the_right_option():
    choice = example(1, options=("lung", "brain", "liver"))
    (asked,) = ask("none_of_the_above", [choice])
    assert asked.example.options == ("lung", "liver", "None of the above")
    assert asked.example.answers == ("None of the above",)


def test_a_question_without_options_gets_wrong_answers_to_the_same_question():
    organs = ("brain", "chest", "abdomen", "the brain stem")
    asked = ask("none_of_the_above", [example(n, answer=a) for n, a in enumerate(organs)])
    of_brain = next(a for a in asked if a.original_id == "q0").example
    # "brain stem" holds the right answer, so it may be right.
    assert set(of_brain.options) == {"chest", "abdomen", "None of the above"}
    assert ask("none_of_the_above", [example(1, "Is it?", "yes"), example(2, "Is it?", "no")]) == []


def test_a_probe_that_does_not_apply_asks_nothing():
    alone = [example(1)]
    every = probe_questions(NAMES, alone, seed=0)
    assert {name.value for name, asked in every.items() if not asked} == {
        *("other_patient", "leading", "none_of_the_above"),
    }


def test_ids_of_all_probes_differ(phantoms):
    every = probe_questions(NAMES, phantoms, seed=0)
    ids = [asked.example.id for each in every.values() for asked in each]
    assert len(set(ids)) == len(ids)
