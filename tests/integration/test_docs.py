"""The site builds without a warning, and README and docs name only what exists."""

import argparse
import ast
import json
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from medvqa.cli import COMMANDS, HANDLERS
from medvqa.config.compose import checked, compose_cells
from medvqa.config.curriculum import CurriculumConfig
from medvqa.config.errors import UserError
from medvqa.config.schema import Config
from medvqa.config.typed import typed_group
from medvqa.report.report import unpack_example
from tests.conftest import ROOT
from tools.reference_pages import keys, on_page_markdown, sections

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FROZEN = ("preregistration.md", "preregistration_speaking.md", "results.md")  # of a finished study
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:python train\.py|medvqa)(?: |$)")


def blocks(page: Path, *languages: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return [body for language, body in FENCE.findall(text) if language in languages]


def commands(page: Path) -> list[list[str]]:
    """Return the words of each command of ours in the page's fenced blocks, without comments."""
    shell = "\n".join(blocks(page, "", "bash")).replace("\\\n", " ").splitlines()
    console = [
        line[2:] for b in blocks(page, "console") for line in b.splitlines() if line[:2] == "$ "
    ]
    parts = [part for line in [*shell, *console] for part in line.split(" && ")]
    return [shlex.split(part, comments=True) for part in parts if COMMAND.match(part)]


EVERY_COMMAND = [
    pytest.param(words, id=f"{page.stem}: {' '.join(words)[:80]}")
    for page in PAGES
    for words in commands(page)
]


class ParsedError(Exception):
    """The parser took the command."""


@pytest.mark.parametrize("words", EVERY_COMMAND)
def test_a_documented_command_is_understood(words, monkeypatch):
    name, arguments = words[1], words[2:]
    if words[0] == "python":
        name = "train"
    assert name in COMMANDS
    if name in ("train", "evaluate", "preflight"):
        composes([*arguments, f"only_evaluate={str(name == 'evaluate').lower()}"])
    if name in ("train", "evaluate"):
        return

    def stopping(parse):
        def parse_alone(parser, argv):
            parse(parser, argv)
            raise ParsedError

        return parse_alone

    for method in ("parse_args", "parse_intermixed_args"):
        parse = getattr(argparse.ArgumentParser, method)
        monkeypatch.setattr(argparse.ArgumentParser, method, stopping(parse))
    module, _, function = HANDLERS[name].partition(":")
    with pytest.raises(ParsedError):
        getattr(import_module(module), function)(arguments)


def curricula() -> set[str]:
    """Return the names of the curricula that pages tell the reader to write."""
    examples = [yaml.safe_load(body) for page in PAGES for body in blocks(page, "yaml")]
    return {values["name"] for values in examples if "stages" in values}


def composes(arguments: list[str]) -> None:
    own = "|".join(sorted(curricula(), key=len, reverse=True))
    overrides = [re.sub(rf"\b({own})\b", "mixed", word) for word in arguments]
    # One seed: the cells of the others differ in nothing else.
    overrides = [re.sub(r"^(seed=\d+),.*", r"\1", w) for w in overrides if not w.startswith("-")]
    try:
        cells = compose_cells(overrides, is_sweep="-m" in arguments)
    except UserError as error:  # a search composes its trials one by one
        assert "chooses its cells as it goes" in str(error)
        return
    for _, cell in cells:
        checked(cell, runs_here=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_are_valid(page):
    for body in blocks(page, "python"):
        ast.parse(body)
    for body in blocks(page, "yaml"):
        values = yaml.safe_load(body)
        if "stages" in values:
            typed_group(CurriculumConfig, values)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_file_that_a_page_names_exists(page):
    text = "" if page.name in ("lab_notes.md", *FROZEN) else page.read_text(encoding="utf-8")
    places = re.findall(r"`((?:medvqa|conf|tests|tools|benchmarks|docs)/[\w./-]+)`", text)
    missing = [ROOT / place for place in places if not (ROOT / place).exists()]
    assert [
        path for path in missing if path.stem not in {"NAME", "tiny", "small", *curricula()}
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_lines_fit_a_screen_except_in_tables(page):
    if page.name in FROZEN:
        return
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 100 and line[:1] not in "|!<"] == []


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.stem)
def test_a_link_leads_to_a_file_and_a_heading(page):
    for link in re.findall(r"(?:\]\(|src(?:set)?=\")([^)\"\s]+)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        if path.startswith("http"):
            continue
        target = page if not path else ROOT / path
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert anchor in slugs, link


def test_each_key_of_the_config_has_a_meaning():
    empty = [
        f"{prefix}{key.name}"
        for prefix, schema in sections(Config)
        for key in keys(schema)
        if not key.meaning
    ]
    assert empty == []


def test_each_key_of_a_record_is_explained(tmp_path):
    run = next(unpack_example(tmp_path).glob("tiny-*"))
    page = on_page_markdown((ROOT / "docs" / "records.md").read_text(encoding="utf-8"))
    answers = run / "evaluation" / "final" / "test"
    files = [run / "run.json", run / "metrics.jsonl", run / "status.json"]
    for path in (*files, answers / "metrics.json", answers / "predictions.jsonl"):
        text = path.read_text(encoding="utf-8")
        keys = json.loads(text.splitlines()[0] if path.suffix == ".jsonl" else text)
        assert [key for key in keys if f"`{key}`" not in page] == [], path.name


def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    pytest.importorskip("mkdocs", reason='no mkdocs: pip install -e ".[docs]"')
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    for page in tmp_path.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(
            r"<(?:script|link|img|iframe)[^>]* (?:src|href)=\"(https?:[^\"]+)", text
        )
        assert fetched == [], page
