"""`medvqa report --example` shows a record of real runs that the package carries."""

import io
import json
import re
import tarfile

import matplotlib as mpl
import pytest

from medvqa.config.errors import UserError
from medvqa.report.matching import Settings
from medvqa.report.report import ARCHIVE, main_report, read_report
from medvqa.report.runs import read_runs
from tools.pack_example import pack


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    directory = tmp_path_factory.mktemp("example")
    main_report(["--example", str(directory), "--samples", "50", "--no-plots"])
    return directory


def test_the_page_compares_arms_over_seeds_and_shows_pictures(example):
    page = (example / "report.html").read_text(encoding="utf-8")
    for text in ("open_first", "mixed", "zero-shot base", "data:image/jpeg;base64,"):
        assert text in page
    table = (example / "tables.md").read_text(encoding="utf-8")
    assert re.search(r"\| tiny \| mixed \| 3 \|", table)


def test_the_page_and_the_tables_say_the_same_of_few_seeds(example):
    (sentence,) = set(
        re.findall(r"With 3 seeds per arm[^\n\"]*", (example / "tables.md").read_text())
    )
    page = (example / "report.html").read_text(encoding="utf-8")
    (data,) = re.findall(r'"few_seeds":(\{.*?\})', page)
    assert json.loads(data) == {"test": [sentence.strip()]}


def test_the_record_is_of_finished_runs_and_can_be_reported_again(example):
    runs = read_runs([example / "grid"])
    assert {run.state for run in runs} == {"finished"} and len(runs) == 6


def test_the_record_is_small_and_names_no_place_of_a_machine(example):
    assert ARCHIVE.stat().st_size < 200_000
    for path in (example / "grid").rglob("*.json*"):
        assert not re.search(r'"/\w+|/(home|root|tmp)/', path.read_text(encoding="utf-8"))


def test_a_report_leaves_the_style_of_the_callers_own_figures(example, tmp_path):
    with mpl.rc_context({"font.size": 17.0, "axes.spines.top": True}):
        read_report([example / "grid"], Settings(num_samples=50)).write(tmp_path / "report")
        assert (mpl.rcParams["font.size"], mpl.rcParams["axes.spines.top"]) == (17.0, True)


def test_packing_the_record_again_gives_the_same_files(example, tmp_path):
    def files(archive):
        with tarfile.open(archive) as members:
            return {member.name: members.extractfile(member).read() for member in members}

    pack(example / "grid", tmp_path / "again.tar.xz")
    assert files(tmp_path / "again.tar.xz") == files(ARCHIVE)


@pytest.mark.parametrize("arguments", [[], ["multirun", "--example", "x"]])
def test_a_report_is_of_directories_or_of_the_example(arguments):
    with pytest.raises(UserError, match="give directories of runs and grids, or --example DIR"):
        main_report(arguments)


def test_on_a_terminal_each_phase_of_a_report_has_a_live_line(example, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", stream)
    report = read_report([example / "grid"], Settings(num_samples=50))
    report.write(example / "again")
    for phase in ("reading runs", "averaging arms", "comparing arms on test", "drawing figures"):
        assert phase in stream.getvalue()
