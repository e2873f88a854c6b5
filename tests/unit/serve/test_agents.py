"""What reaches the tool over MCP's standard input."""

import json

import pytest

from medvqa.serve.agents import without_half_surrogates


def test_halves_of_surrogate_pairs_become_null_characters_and_pairs_stay():
    line = rb'{"a": "\ud83d\ude00 \ud800", "\udc00": ["\uDFFFx"]}' + b"\n"
    cleaned = json.loads(without_half_surrogates(line))
    assert cleaned == {"a": "\U0001f600 \0", "\0": ["\0x"]}


@pytest.mark.parametrize("line", [b"", b"{\n", rb'{"a": "\ud800"' + b"\n", rb'{"a": "\u00e4"}'])
def test_other_lines_pass_unchanged(line):
    assert without_half_surrogates(line) is line
