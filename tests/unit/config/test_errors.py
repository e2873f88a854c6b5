"""Errors name the place and the reason in one line."""

import errno
import os

import pytest

from medvqa.config.errors import UserError, about, as_user_error, machine_mistake


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no question", "a.jsonl, line 2: no question"),
        ("has no image", "a.jsonl, line 2 has no image"),
        ("is no row but list", "a.jsonl, line 2 is no row but list"),
        ("image a.jsonl, line 2 is empty", "image a.jsonl, line 2 is empty"),
    ],
)
def test_a_place_stands_once_in_front_of_a_message_or_begins_its_sentence(text, message):
    with pytest.raises(UserError) as error, about("a.jsonl, line 2"):
        raise UserError(text)
    assert str(error.value) == message


def test_without_a_place_a_message_stays():
    with pytest.raises(UserError, match=r"^no question$"), about(""):
        raise UserError("no question")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("\n disk full\nerrno 28"), "cannot fetch x (disk full); try again"),
        (KeyError(), "cannot fetch x (KeyError); try again"),
        (UserError("no such file"), "no such file"),
    ],
)
def test_any_error_of_a_library_becomes_one_line_and_ours_stay(error, message):
    with pytest.raises(UserError) as raised, as_user_error("cannot fetch x", "; try again"):
        raise error
    assert str(raised.value) == message


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.ENAMETOOLONG, errno.EISDIR])
def test_a_mistake_of_the_machine_is_one_line_that_names_the_place(number):
    mistake = machine_mistake(OSError(number, os.strerror(number), "/place"))
    assert str(mistake).startswith(f"cannot use /place ({os.strerror(number)})")
    assert ("make room" in str(mistake)) == (number == errno.ENOSPC)


def test_a_fault_of_ours_is_no_mistake_of_the_machine():
    assert machine_mistake(FileNotFoundError(errno.ENOENT, "No such file", "/place")) is None
    assert machine_mistake(ValueError("fault")) is None
