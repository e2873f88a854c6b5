"""`medvqa score` on answers of a real model, and its mistakes as a process."""

import json
import subprocess
import sys

import pytest

from medvqa.config.errors import UserError
from medvqa.evaluation.score_file import main_score, protocol_names


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


ANSWER = '{"prediction": "a", "reference": "a"}'


@pytest.mark.parametrize("tolerance", ["nan", "-1", "inf", "1"])
def test_a_tolerance_that_is_no_share_is_refused(tmp_path, tolerance):
    (tmp_path / "p.jsonl").write_text(ANSWER)
    with pytest.raises(UserError, match=r"--tolerance must be a share in \[0, 1\)"):
        main_score([str(tmp_path / "p.jsonl"), "--bertscore", "off", f"--tolerance={tolerance}"])


@pytest.mark.parametrize("target", ["p.jsonl", "."])
def test_the_answers_are_never_overwritten_by_their_scores(tmp_path, target):
    (tmp_path / "p.jsonl").write_text(ANSWER)
    with pytest.raises(UserError, match="--json"):
        main_score([str(tmp_path / "p.jsonl"), "--json", str(tmp_path / target)])
    assert (tmp_path / "p.jsonl").read_text() == ANSWER


def test_a_protocol_counts_once_and_spaces_between_names_are_none():
    assert [name.value for name in protocol_names("seed, medvqa,seed")] == ["seed", "medvqa"]


@pytest.mark.parametrize("protocol", ["medvqa", "multiple_choice"])
def test_a_reference_that_is_no_option_names_the_question(tmp_path, protocol):
    row = '{"id": "q7", "prediction": "a", "reference": "c", "options": ["a", "b"]}'
    (tmp_path / "p.jsonl").write_text(row)
    with pytest.raises(UserError, match="question q7: the reference 'c' is none of a, b"):
        main_score([str(tmp_path / "p.jsonl"), "--bertscore", "off", "--protocol", protocol])
