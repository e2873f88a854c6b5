"""Which rank trains on which examples."""

import random

import pytest

from medvqa.training.ranks import Ranks


def shares(keys, size):
    items = list(range(len(keys)))
    return [Ranks(rank, size).share(items, keys) for rank in range(size)]


@pytest.fixture(params=range(50))
def keys(request):
    chance = random.Random(request.param)
    return [f"picture {chance.randrange(12)}" for _ in range(chance.randrange(41))]


@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_the_ranks_have_each_example_once_and_parts_of_equal_size(keys, size):
    parts = shares(keys, size)
    assert sorted(item for part in parts for item in part) == list(range(len(keys)))
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1
    assert all(part == sorted(part) for part in parts)


@pytest.mark.parametrize("size", [2, 4, 5])
def test_a_picture_leaves_its_rank_only_where_that_rank_is_full_of_its_own_pictures(keys, size):
    def home(key):
        return next(rank for rank, part in enumerate(shares([key] * size, size)) if 0 in part)

    parts = shares(keys, size)
    for rank, part in enumerate(parts):
        for key in {keys[item] for item in part}:
            own = parts[home(key)]
            is_full = len(own) >= len(keys) // size and all(
                home(keys[item]) == home(key) for item in own
            )
            assert home(key) == rank or is_full
