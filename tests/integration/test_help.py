"""Every command's help is grouped, fits 100 columns and gives examples that its parser accepts."""

import re
import shlex
import subprocess
import sys
from importlib import import_module

import pytest

from medvqa.cli import COMMANDS, HANDLERS
from medvqa.config.command_line import COLUMNS, CommandParser
from medvqa.config.compose import checked, compose_cells
from tests.conftest import ROOT

OVERVIEW, SCRIPT = "", "python train.py"  # beside the commands, whose names are those of COMMANDS
PROGRAM = [sys.executable, "-m", "medvqa.cli"]


def handler_of(name):
    module, _, function = HANDLERS[name].partition(":")
    return getattr(import_module(module), function)


@pytest.fixture(scope="module")
def helps():
    """What each command prints on a terminal that is wider than its help may be."""
    started = {
        name: subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), "--help"]
            if name == SCRIPT
            else [*PROGRAM, *filter(None, [name]), "--help"],
            stdout=subprocess.PIPE,
            text=True,
            env={"COLUMNS": "200", "PYTHONPATH": str(ROOT)},
        )
        for name in [OVERVIEW, SCRIPT, *(name for name in COMMANDS if name not in HANDLERS)]
    }
    printed = {name: process.communicate()[0] for name, process in started.items()}
    assert not any(process.returncode for process in started.values())
    return printed


@pytest.fixture
def help_of(helps, monkeypatch, capsys):
    def help_of(name):
        if name in helps:
            return helps[name]
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as left:
            handler_of(name)(["--help"])
        assert left.value.code == 0
        return capsys.readouterr().out

    return help_of


def examples(text):
    lines = text.rpartition("examples:\n")[2].splitlines()
    return [re.split(r" {2,}", line.strip())[0] for line in lines if re.match(r" {1,2}\w", line)]


@pytest.mark.parametrize("name", [OVERVIEW, SCRIPT, *COMMANDS])
def test_each_help_is_grouped_fits_and_ends_with_an_example(help_of, name):
    text = help_of(name)
    assert max(map(len, text.splitlines())) <= COLUMNS
    headings = re.findall(r"^[\w].*:$", text, re.MULTILINE)
    assert headings[-1] == "examples:"
    assert {*headings} - {"options:", "positional arguments:", "examples:"} or name == "doctor"
    assert "positional arguments:" not in headings
    assert examples(text)


@pytest.mark.parametrize("name", HANDLERS)
def test_the_examples_of_a_command_can_be_parsed(help_of, monkeypatch, name):
    class ParsedError(Exception):
        pass

    shown = examples(help_of(name))
    for function in ("parse_args", "parse_intermixed_args"):
        original = getattr(CommandParser, function)

        def parse(self, argv, original=original):
            original(self, argv)
            raise ParsedError

        monkeypatch.setattr(CommandParser, function, parse)
    for example in shown:
        program, command, *arguments = shlex.split(example)
        assert (program, command) == ("medvqa", name)
        with pytest.raises(ParsedError):
            handler_of(name)(arguments)


@pytest.mark.parametrize("name", [SCRIPT, "train", "evaluate"])
def test_the_examples_of_training_and_evaluation_compose(helps, name):
    for example in examples(helps[name]):
        words = shlex.split(example.split(" --cfg")[0])[2:]
        overrides = [word for word in words if word != "-m"]
        if name == "evaluate":
            overrides.append("only_evaluate=true")
        for _, cfg in compose_cells(overrides, is_sweep="-m" in words):
            checked(cfg, runs_here=False)
