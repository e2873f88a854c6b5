"""`medvqa score` on answers of a real model, and its mistakes as a process."""

import json
import subprocess
import sys

import pytest

from medvqa.evaluation.score_file import main_score


def score_command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "medvqa.cli", "score", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_published_values_of_a_real_model_are_reproduced(shared, tmp_path, capsys):
    place = shared / "reference" / "vqa_rad_qwen2_vl_2b"
    main_score([str(place / "predictions.jsonl"), "--json", str(tmp_path / "out.json")])
    got = json.loads((tmp_path / "out.json").read_text())["summary"]
    published = json.loads((place / "metrics.json").read_text())
    close = {"abs": 1e-6}
    assert got["closed"]["exact_match"]["mean"] == pytest.approx(0.565737, **close)
    assert got["overall"]["exact_match"]["mean"] == pytest.approx(0.379157, **close)
    assert got["open"]["f1"]["mean"] == pytest.approx(0.200833, **close)
    assert got["open"]["f1"]["num_examples"] == published["open"]["n"]
    assert "0.566" in capsys.readouterr().out


def test_a_missing_file_is_one_line_and_exit_code_2(tmp_path):
    answer = score_command(tmp_path / "none.jsonl")
    assert answer.returncode == 2
    assert answer.stderr.startswith("medvqa: cannot read")
    assert len(answer.stderr.splitlines()) == 1
