"""Conversations: every known form gives the same pairs, anything else one clear message."""

import json

import pytest

from medvqa.config.errors import UserError
from medvqa.data.conversations import turns

PAIRS = [("What plane is this?", "Axial."), ("Is it a CT?", "Yes")]
FROM = [
    {"from": "human", "value": "<image>\nWhat plane is this?"},
    {"from": "gpt", "value": "Axial. "},
    {"from": "human", "value": "Is it a CT?"},
    {"from": "gpt", "value": "Yes"},
]
ROLE = [
    {"role": "user" if m["from"] == "human" else "assistant", "content": m["value"]} for m in FROM
]
PARTS = [
    {
        "role": m["role"],
        "content": [
            {"type": "image", "text": None},
            {"type": "text", "text": m["content"].removeprefix("<image>\n")},
        ],
    }
    for m in ROLE
]


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(FROM, id="from_value"),
        pytest.param(ROLE, id="role_content"),
        pytest.param(PARTS, id="parts"),
        pytest.param(json.dumps(FROM), id="json"),
        pytest.param(repr(FROM), id="python"),
        pytest.param(f"\n {ROLE!r}\n", id="python_with_space_around"),
        pytest.param([{"role": "system", "content": "Be brief."}, *ROLE], id="system"),
    ],
)
def test_every_form_gives_the_same_pairs(value):
    assert turns(value) == PAIRS


def test_a_marker_inside_a_sentence_leaves_no_gap():
    said = [{"from": "human", "value": "In the image <image><image> what is it?"}, FROM[1]]
    assert turns(said, num_images=2)[0][0] == "In the image what is it?"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "conversations is no list of messages but NoneType"),
        ("", "conversations is no list of messages: ''"),
        ("None", "conversations is no list of messages but NoneType"),
        ("What is it? A lung.", "conversations is no list of messages: 'What is it"),
        ("[" * 100_000, "conversations is no list of messages"),
        ([], "conversations: question and answer must take turns; it has nobody"),
        (["What?"], "conversations: message 0 is str, not {from, value}"),
        ([{"speaker": "a", "text": "b"}], "message 0 has neither .* it has speaker, text"),
        (FROM[1:], "conversations: question and answer must take turns; it has gpt, human, gpt"),
        ([FROM[0], FROM[0]], "must take turns; it has human, human"),
        ([{"from": "bot", "value": "a"}], "must take turns; it has bot"),
        (FROM[:1], "conversations has no answer to its last question"),
        (
            [{"from": "human", "value": "<image>"}, FROM[1]],
            "conversations has no question in turn 0",
        ),
        ([*FROM[:3], {"from": "gpt", "value": None}], "conversations has no answer in turn 1"),
        (
            [{"from": "human", "value": "<image><image>Which?"}, FROM[1]],
            "message 0 has 2 <image> markers, but 1 image",
        ),
        ([FROM[0], {"from": "gpt", "value": 3}], "message 1 is int, not a text: 3"),
    ],
)
def test_anything_else_is_named(value, message):
    with pytest.raises(UserError, match=message):
        turns(value)
