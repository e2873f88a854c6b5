"""The examples run as they are written: the notebook, and the table of one's own."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from PIL import Image, ImageChops

from tests.conftest import ROOT, call, environment

EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "quickstart.ipynb"


def test_the_notebook_shows_a_run_a_curriculum_a_grid_and_the_report(tmp_path, monkeypatch):
    """`QUICKSTART=whole` executes the notebook as a reader would; else a shortened form."""
    nbclient = pytest.importorskip("nbclient", reason='needs pip install -e ".[dev]"')
    nbformat = pytest.importorskip("nbformat")
    kernels = pytest.importorskip("jupyter_client.kernelspec")
    # A kernel of this very environment, whatever is installed for the user.
    kernels.KernelSpecManager.ensure_native_kernel = True
    if os.environ.get("QUICKSTART") != "whole":
        monkeypatch.setenv("QUICKSTART_STEPS", "4")
        monkeypatch.setenv("QUICKSTART_QUESTIONS", "16")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": tmp_path}}
    ).execute()
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}

    def shown(name, kind):
        return "".join(part["data"][kind] for part in outputs[name] if kind in part.get("data", {}))

    assert "zero_shot" in shown("run", "text/html")
    assert shown("curriculum", "text/plain") == "['short', 'rest']"
    assert set(re.findall(r"'(\w+)': ", shown("grid", "text/plain"))) == {"mixed", "short_first"}
    assert "<iframe" in shown("report", "text/html") and "short_first" in shown(
        "report", "text/html"
    )
    assert "llava_med" in shown("score", "text/html")
    again, first = shown("evaluate", "text/plain").strip("()").split(", ")
    assert again == first
    assert (next(tmp_path.glob("quickstart-*")) / "report" / "report.html").is_file()


def test_the_notebook_is_committed_without_outputs_and_machine_paths():
    text = NOTEBOOK.read_text(encoding="utf-8")
    for cell in json.loads(text)["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    assert not re.search(r"/(work|home|root|tmp|Users)/", text)


def documented_command():
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    return re.search(r"^python train\.py (data=table .*)$", text, re.MULTILINE)[1].split()


def test_the_documented_command_trains_on_the_table_of_one_s_own(tmp_path):
    arguments = [text.replace("examples/", f"{EXAMPLES}/") for text in documented_command()]
    answer = call(tmp_path / "run", *arguments, "training.max_steps=2", "tracking=disabled")
    assert answer.returncode == 0, answer.stderr
    assert "see 6 of 6 training examples" in answer.stderr
    assert "evaluation sets: test 4" in answer.stderr


def test_the_own_data_are_ten_rows_with_a_picture_each_below_100_kilobytes():
    folder = EXAMPLES / "own_data"
    rows = [
        row
        for split in ("train", "test")
        for row in csv.DictReader((folder / f"{split}.csv").open(encoding="utf-8"))
    ]
    pictures = {path.relative_to(folder).as_posix() for path in folder.glob("pictures/*.png")}
    assert {row["image"] for row in rows} == pictures and len(rows) == len(pictures) == 10
    assert sum((folder / name).stat().st_size for name in pictures) < 100_000


def test_the_script_draws_the_committed_pictures(tmp_path):
    copy = shutil.copy(EXAMPLES / "own_data" / "draw.py", tmp_path)
    subprocess.run(
        [sys.executable, copy], check=True, env={**environment(), "PYTHONPATH": str(ROOT)}
    )
    for path in (EXAMPLES / "own_data").rglob("*.*"):
        drawn = tmp_path / path.relative_to(EXAMPLES / "own_data")
        if path.suffix == ".png":  # another version of the encoder may write other bytes
            assert not ImageChops.difference(Image.open(drawn), Image.open(path)).getbbox()
        else:
            assert drawn.read_bytes() == path.read_bytes()
