"""The list of commands."""

from medvqa.cli import COMMANDS, GROUPS, HANDLERS


def test_each_command_is_in_one_group():
    assert sum(map(len, GROUPS.values())) == len(COMMANDS)
    assert set(HANDLERS) <= set(COMMANDS)
