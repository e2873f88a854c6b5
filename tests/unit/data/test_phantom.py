"""Phantoms: reproducible, balanced, apart from each other, and asking what the picture shows."""

import re

import numpy as np
import pytest

from medvqa.config.data import SourceConfig
from medvqa.config.errors import UserError
from medvqa.data.phantom_drawing import MODALITIES, SHIFTED_MODALITY, Scene, draw
from medvqa.data.pool import load_examples
from tools.pretraining_texts import describe, pretraining_examples

SPLITS = ("train", "validation", "test", "shifted")


@pytest.fixture(scope="module")
def splits():
    return {s: load_examples(SourceConfig(name="phantom", split=s), seed=0) for s in SPLITS}


def scenes(examples):
    return {image.scene for example in examples for image in example.images}


def test_the_same_seed_draws_the_same_examples(splits):
    again = load_examples(SourceConfig(name="phantom", split="train"), seed=0)
    other = load_examples(SourceConfig(name="phantom", split="train"), seed=1)
    assert again == splits["train"] != other
    assert again[0].images[0].read() == splits["train"][0].images[0].read()


def test_splits_and_pretraining_share_no_picture(splits):
    seeds = [{scene.seed for scene in scenes(examples)} for examples in splits.values()]
    seeds.append({s.seed for s in scenes(pretraining_examples(300, seed=0))})
    assert len(set().union(*seeds)) == sum(map(len, seeds))


def test_pretraining_holds_no_question_of_any_split(splits):
    asked = {example.question for examples in splits.values() for example in examples}
    assert not asked & {example.question for example in pretraining_examples(500, seed=0)}


def test_only_the_shifted_split_shows_the_shifted_modality(splits):
    for name, examples in splits.items():
        expected = {SHIFTED_MODALITY} if name == "shifted" else set(MODALITIES)
        assert {scene.modality for scene in scenes(examples)} == expected
    assert not any("scan" in e.question or "imaging" in e.question for e in splits["shifted"])


def test_types_are_balanced_and_no_answer_dominates(splits):
    train = splits["train"]
    assert len(train) == 4000
    closed = [example.answers[0] for example in train if example.answer_type == "closed"]
    assert 0.45 < len(closed) / len(train) < 0.55
    yes_no = [answer for answer in closed if answer in ("yes", "no")]
    assert 0.35 < yes_no.count("yes") / len(yes_no) < 0.5
    assert sum(len(example.images) == 2 for example in train) > 400


def facts_hold(example):
    """Check one question against the scene by its words alone, apart from the generator."""
    scene, answer = example.images[0].scene, example.answers[0]
    question = example.question.lower()
    if len(example.images) == 2:
        other = example.images[1].scene
        if "same organ" in question:
            return (answer == "yes") == (scene.organ == other.organ)
        if "more lesions" in question:
            return (answer == "first") == (scene.num_lesions > other.num_lesions)
        return answer == (scene if "first" in question else other).organ
    if answer not in ("yes", "no"):
        return answer in (scene.modality, scene.organ, scene.side, scene.tone, scene.size,
                          str(scene.num_lesions))  # fmt: skip
    at_least = re.search(r"\d", question)
    if at_least:
        return (answer == "yes") == (scene.num_lesions >= int(at_least[0]))
    words = set(re.findall(r"[a-z-]+", question))
    held = {scene.modality, scene.organ, scene.side, scene.tone, scene.size}
    return (answer == "yes") == bool(words & held)


def test_every_answer_is_true_of_its_picture(splits):
    for examples in splits.values():
        wrong = [e for e in examples if not facts_hold(e)]
        assert wrong == []


@pytest.mark.parametrize("modality", [*MODALITIES, SHIFTED_MODALITY])
@pytest.mark.parametrize("organ", ["brain", "chest", "abdomen"])
def test_a_lesion_is_visible_on_its_side(modality, organ):
    def pixels(num_lesions, side="left", tone="bright"):
        return draw(Scene(modality, organ, num_lesions, side, tone, "large", 11))

    for side, columns in (("left", slice(0, 64)), ("right", slice(64, 128))):
        # Speckle is drawn after the lesions from the same generator, so compare areas.
        change = pixels(3, side)[:, columns].mean() - pixels(3, side, "dark")[:, columns].mean()
        elsewhere = slice(64, 128) if side == "left" else slice(0, 64)
        rest = pixels(3, side)[:, elsewhere].mean() - pixels(3, side, "dark")[:, elsewhere].mean()
        assert change > 0.03
        assert abs(rest) < 0.2 * change


def test_a_caption_holds_all_facts():
    scene = Scene("ct", "brain", 2, "left", "bright", "small", 1)
    assert describe(scene) == "ct of the brain. 2 bright small lesions on the left side."


def test_pictures_are_128_pixels_of_grey(splits):
    picture = draw(splits["test"][0].images[0].scene)
    assert picture.shape == (128, 128)
    assert np.isfinite(picture).all()


def test_names_and_limits_are_checked():
    with pytest.raises(UserError, match=r"unknown data set 'phantm'; did you mean phantom\?"):
        load_examples(SourceConfig(name="phantm", split="test"), seed=0)
    with pytest.raises(UserError, match="limit=501, but there are only 500 rows"):
        load_examples(SourceConfig(name="phantom", split="test", limit=501), seed=0)


def test_a_limit_keeps_a_seeded_sample_in_order(splits):
    kept = load_examples(SourceConfig(name="phantom", split="test", limit=50), seed=0)
    names = [example.id for example in splits["test"]]
    places = [names.index(example.id) for example in kept]
    assert places == sorted(places)
    assert places != list(range(50))
