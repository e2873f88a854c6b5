"""Mixtures: quotas and weights give exact counts, the same ids for the same seed."""

from collections import Counter
from dataclasses import replace

import pytest

from medvqa.config.data import DataConfig, PartConfig, SourceConfig
from medvqa.config.errors import UserError
from medvqa.config.schema import splits_overlap
from medvqa.config.typed import typed_anywhere
from medvqa.data.pool import load_examples, load_pool, load_sets, shares
from tests.unit.config.test_compose import composed, resolved_plain


def mixture(limit=None, **parts):
    rows = {name: PartConfig(name="phantom", **options) for name, options in parts.items()}
    return SourceConfig(name="mixture", split="train", limit=limit, parts=rows)


def parts_of(examples):
    return Counter(example.id.partition("/")[0] for example in examples)


def test_quotas_are_exact_and_a_part_without_one_gives_all_its_rows():
    config = mixture(a={"split": "test", "quota": 7}, b={"split": "validation"})
    pool = load_pool(config, seed=0)
    assert parts_of(pool.examples) == {"a": 7, "b": 500}
    assert {name: part.num_available for name, part in pool.parts.items()} == {"a": 500, "b": 500}


def test_weights_share_the_limit():
    config = mixture(
        limit=10, a={"split": "test", "weight": 1}, b={"split": "validation", "weight": 2}
    )
    assert parts_of(load_examples(config, seed=0)) == {"a": 3, "b": 7}


def test_rounding_leaves_nothing_over():
    assert shares(10, {"a": 1, "b": 1, "c": 1}) == {"a": 4, "b": 3, "c": 3}
    assert shares(7, {"a": 0.5, "b": 0.3, "c": 0.2}) == {"a": 4, "b": 2, "c": 1}


def test_the_seed_alone_decides_which_rows():
    config = mixture(a={"split": "test", "quota": 20})
    ids = [[e.id for e in load_examples(config, seed=seed)] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]


def test_one_set_twice_keeps_ids_apart():
    config = mixture(a={"split": "test", "quota": 5}, b={"split": "test", "quota": 5})
    assert len({e.id for e in load_examples(config, seed=0)}) == 10


def test_a_quota_above_what_exists_names_the_part():
    config = mixture(a={"split": "test", "quota": 501})
    with pytest.raises(UserError, match=r"data.parts.a: its quota=501, but there are only 500"):
        load_examples(config, seed=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mixture(a={"split": "x", "quota": 1, "weight": 1.0}), "quota and a weight"),
        (lambda: mixture(a={"split": "x", "weight": 1.0}), "data.limit="),
        (lambda: mixture(9, a={"split": "x", "weight": 1.0}, b={"split": "x"}), "every part"),
        (lambda: mixture(9, a={"split": "x"}), "needs weights"),
        (lambda: mixture(), "belong together"),
    ],
)
def test_contradictions_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("train", "test", False),
        ("train", "all", True),
        ("test", "test_en", True),
        ("train_disjoint", "test_disjoint", False),
        ("train", "test_disjoint", True),
    ],
)
def test_which_splits_share_rows(one, other, expected):
    assert splits_overlap(one, other) is expected
    assert splits_overlap(other, one) is expected


def test_each_evaluation_set_is_asked_at_most_so_many_questions():
    sets = {
        "small": SourceConfig(name="phantom", split="test", limit=5),
        "mixed": SourceConfig(
            name="mixture",
            split="test",
            parts={
                "one": PartConfig(name="phantom", split="test", quota=30),
                "two": PartConfig(name="phantom", split="train", quota=10),
            },
        ),
    }
    config = DataConfig(name="phantom", split="train", evaluation=sets, evaluation_limit=20)
    loaded = load_sets(config)
    assert len(loaded["small"].examples) == 5
    mixed = loaded["mixed"]
    assert len(mixed.examples) == 20
    sampled = {name: part.num_sampled for name, part in mixed.parts.items()}
    assert sampled == Counter(e.id.partition("/")[0] for e in mixed.examples)
    assert set(sampled) == {"one", "two"}
    whole = load_sets(replace(config, evaluation_limit=None))["mixed"].examples
    assert [e for e in whole if e in mixed.examples] == mixed.examples
    again = load_sets(config)["mixed"].examples
    assert again == mixed.examples
    with pytest.raises(UserError, match=r"data\.evaluation_limit must be in \[1, .*, got 0"):
        typed_anywhere(resolved_plain(composed("data.evaluation_limit=0")))
