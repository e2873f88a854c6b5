"""Odd arguments of agents, and odd lines on MCP's standard input."""

import json

import pytest

from medvqa.serve.agents import langchain_tool, without_half_surrogates
from medvqa.serve.intake import Intake, Limits
from medvqa.serve.tool import Specialist


def test_halves_of_surrogate_pairs_become_null_characters_and_pairs_stay():
    line = rb'{"a": "\ud83d\ude00 \ud800", "\udc00": ["\uDFFFx"]}' + b"\n"
    cleaned = json.loads(without_half_surrogates(line))
    assert cleaned == {"a": "\U0001f600 \0", "\0": ["\0x"]}


@pytest.mark.parametrize("line", [b"", b"{\n", rb'{"a": "\ud800"' + b"\n", rb'{"a": "\u00e4"}'])
def test_other_lines_pass_unchanged(line):
    assert without_half_surrogates(line) is line


@pytest.mark.parametrize(
    ("arguments", "names"),
    [({"query": 5, "images": 5}, "images, query"), ({"query": "q", "\ud800": 1}, "arguments")],
)
def test_wrong_arguments_whatever_their_names_come_back_as_a_text(arguments, names):
    tool = langchain_tool(Specialist(Intake([], Limits()), pytest.fail))
    assert tool.invoke(arguments).startswith(f"[invalid_arguments] check {names}: query is")
