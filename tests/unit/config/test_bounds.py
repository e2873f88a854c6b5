"""Every number and text of a config is bounded, and the message names its key and its bounds."""

import dataclasses
import math
import re
from typing import get_type_hints

import pytest

from medvqa.config.bounds import INTERVALS, within_bounds
from medvqa.config.errors import UserError
from medvqa.config.schema import Config
from medvqa.config.typed import typed_anywhere
from tests.unit.config.test_compose import composed, resolved_plain


def numbers(schema=Config, prefix=""):
    """Yield the dotted keys of all numbers of the schema, with their types."""
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        kind = hints[field.name]
        kinds = [*getattr(kind, "__args__", ()), kind]
        if dataclasses.is_dataclass(kind):
            yield from numbers(kind, f"{prefix}{field.name}.")
        for number in (int, float):
            if number in kinds:
                yield f"{prefix}{field.name}", number


NUMBERS = dict(numbers())


@pytest.fixture(scope="module")
def config():
    return resolved_plain(composed())


def with_value(config, key, value):
    group, _, name = key.rpartition(".")
    if not group:
        return {**config, name: value}
    first, _, rest = group.partition(".")
    return {**config, first: with_value(config[first], f"{rest}.{name}".lstrip("."), value)}


def test_the_numbers_of_every_group_are_known():
    assert {key.partition(".")[0] for key in NUMBERS} >= {"training", "lora", "data", "seed"}


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [-1, 2**63, 10**400], ids=["negative", "64 bits", "400 digits"])
def test_an_absurd_integer_is_refused_by_its_key_and_bounds(config, key, value):
    if NUMBERS[key] is float:
        value = float(min(value, 2**63))
    with pytest.raises(UserError) as caught:
        typed_anywhere(with_value(config, key, value))
    assert str(caught.value).startswith(f"{key} must be in ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", [key for key, kind in NUMBERS.items() if kind is float])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e30])
def test_a_float_that_is_infinite_or_absurd_is_refused(config, key, value):
    with pytest.raises(UserError, match=rf"^{key} must be in .*, got {re.escape(str(value))}"):
        typed_anywhere(with_value(config, key, value))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            {"epochs": math.inf},
            r"^curriculum\.stages\[0\]\.epochs must be in \(0, 10000\], got inf",
        ),
        ({"share": 1.5}, r"^curriculum\.stages\[0\]\.share must be in \(0, 1\], got 1\.5"),
        ({"steps": 2**63}, r"^curriculum\.stages\[0\]\.steps must be in "),
        ({"steps": 1, "name": "a/b"}, r"stages\[0\]\.name names a directory: .* got 'a/b'"),
        ({"steps": 1, "name": ".."}, r"stages\[0\]\.name names a directory"),
    ],
)
def test_values_of_a_list_are_bounded_too(config, stage, message):
    stages = [{"name": "a", **stage}]
    with pytest.raises(UserError, match=message):
        typed_anywhere(with_value(config, "curriculum.stages", stages))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.path", "a\0b", "data.path holds a NUL character"),
        ("model.path", "x" * 300, "model.path is too long"),
        ("model.path", "x/" * 3000, "model.path is too long"),
        ("model.name", "\ud800", "model.name holds half a character"),
        ("data.evaluation", {"a/b": {"name": "phantom", "split": "test"}}, "names a directory"),
        ("data.evaluation", {"t": {"name": "p", "split": "s", "limit": 0}}, "evaluation.t.limit"),
    ],
)
def test_a_text_that_no_file_system_takes_is_refused(config, key, value, message):
    with pytest.raises(UserError, match=message):
        typed_anywhere(with_value(config, key, value))


def test_a_tilde_is_the_users_home_in_every_path(config, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    found = typed_anywhere(with_value(config, "data.evaluation.test.path", "~/set"))
    assert found.data.evaluation["test"].path == "/home/someone/set"
    assert typed_anywhere(with_value(config, "model.path", "~/m")).model.path == "/home/someone/m"


def test_a_type_without_an_interval_of_its_own_has_the_general_one():
    assert set(INTERVALS) == {int, float}
    assert within_bounds(int | None, None, "x") is None
    assert within_bounds(bool, True, "x") is True


@pytest.mark.parametrize("key", ["data.path", "model.name", "data.split"])
@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_text_is_refused(config, key, text):
    with pytest.raises(UserError, match=rf"^{key} is empty; for no value write null"):
        typed_anywhere(with_value(config, key, text))


def test_a_number_of_hundreds_of_digits_is_refused_where_it_does_not_fit_a_float(config):
    with pytest.raises(UserError, match="number of too many digits"):
        typed_anywhere(with_value(config, "lora.alpha", 10**400))
