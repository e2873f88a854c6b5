"""Any two answers files on the same questions are compared, as a table and as a page."""

import csv
import json
import math

import pytest

from medvqa.config.errors import UserError
from medvqa.report.compare import main_compare

NUM_QUESTIONS = 40


def write(path, right, *, has_images=True):
    rows = []
    for number in range(NUM_QUESTIONS):
        image = {"image": f"picture {number // 2}"} if has_images else {}
        answer = "yes" if number in right else "no"
        rows.append({"id": number, "question": "q?", "gt": "yes", "response": answer, **image})
    path.write_text(json.dumps(rows))
    return path


def compare(tmp_path, *files, capsys):
    assert main_compare([*map(str, files), "--out", str(tmp_path / "out")]) == 0
    stored = json.loads((tmp_path / "out" / "comparisons.json").read_text())["comparisons"]
    return capsys.readouterr().out, [c for c in stored if c["group"] == "overall"]


def test_files_are_compared_by_pictures_and_the_page_holds_them(tmp_path, capsys):
    a = write(tmp_path / "first.json", range(30), has_images=False)
    b = write(tmp_path / "second.json", range(20))
    printed, rows = compare(tmp_path, a, b, capsys=capsys)
    (row,) = (row for row in rows if row["metric"] == "exact_match")
    tests = row["tests"]
    assert tests["crossed"]["difference"]["mean"] == pytest.approx(10 / 40)
    # The second file names the pictures; five of twenty differ, each in both of its questions.
    assert tests["crossed"]["num_clusters"] == 20
    differences = [1.0] * 5 + [0.0] * 15
    spread = math.sqrt(sum((d - 0.25) ** 2 for d in differences) / 19 / 20)
    (component,) = tests["crossed"]["components"]
    assert component["variance"] == pytest.approx(spread**2, rel=1e-6)
    assert (tests["mcnemar"][0]["only_a"], tests["mcnemar"][0]["only_b"]) == (10, 0)
    assert "McNemar p (questions independent)" in " ".join(printed.split())
    assert "10 of 40 questions are right in some files only" in printed
    with (tmp_path / "out" / "questions.csv").open() as file:
        differing = list(csv.DictReader(file))
    assert [row["id"] for row in differing] == [str(number) for number in range(20, 30)]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "first" in page
    assert "second" in page


def test_three_files_are_corrected_as_one_family(tmp_path, capsys):
    files = [write(tmp_path / f"{n}.json", range(10 * n, 40)) for n in range(3)]
    _, rows = compare(tmp_path, *files, capsys=capsys)
    family = [row for row in rows if row["metric"] == "exact_match"]
    assert len(family) == 3
    smallest = min(family, key=lambda row: row["tests"]["crossed"]["p_value"])
    assert smallest["p_holm"] == pytest.approx(3 * smallest["tests"]["crossed"]["p_value"])


def test_files_on_other_questions_and_lone_files_are_refused(tmp_path):
    a = write(tmp_path / "a.json", range(3))
    b = tmp_path / "b.json"
    b.write_text(json.dumps(json.loads(a.read_text())[:30]))
    with pytest.raises(UserError, match="lacks 10 ids"):
        main_compare([str(a), str(b)])
    with pytest.raises(UserError, match="two or more"):
        main_compare([str(a)])
    with pytest.raises(UserError, match="given twice"):
        main_compare([str(a), str(a)])


def test_files_with_the_same_answers_show_nothing_to_test(tmp_path, capsys):
    a, b = (write(tmp_path / name, range(20)) for name in ("a.json", "b.json"))
    printed, _ = compare(tmp_path, a, b, capsys=capsys)
    (row,) = (line for line in printed.splitlines() if " EM " in line and "numeric" not in line)
    assert [cell.strip() for cell in row.strip("│ ").split("│")][3:] == ["-"] * 6
    assert "0 of 40 questions are right in some files only" in printed
