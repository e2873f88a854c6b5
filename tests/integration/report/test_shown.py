"""Tables, pictures and the page show what the runs hold."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from medvqa.report.matching import Settings
from medvqa.report.page import Texts, encode, page
from medvqa.report.published import NOT_STATED
from medvqa.report.study import read_study
from medvqa.report.table import latex, markdown, rich_table
from medvqa.report.tables import tables
from medvqa.report.thumbnails import read_pictures
from medvqa.tracking.record import read_lines
from medvqa.tracking.terminal import console


def test_baselines_stand_beside_every_arm(study):
    results, stages, differences = tables(study)
    assert [row[1] for row in results.rows if "blind" not in row[1]] == [
        *("majority answer", "zero-shot base", "closed_first", "mixed", "open_first"),
    ]
    assert sum("blind" in row[1] for row in results.rows) == 3
    phases = [row[2] for row in stages.rows if row[1] == "open_first"]
    assert phases == ["zero shot", "after open", "final"]
    assert len(differences.rows) == 2 * 3


def test_published_values_stand_beside_ours_with_the_difference_in_protocol(written, tmp_path):
    base = "model.name=Qwen/Qwen3-VL-2B-Instruct"
    written(tmp_path / "run", base, "training=qwen3_vl_2b", "training.max_steps=60")
    written(tmp_path / "other", "seed=1")  # a base without a published row
    (table,) = [t for t in tables(read_study([tmp_path])) if t.title.startswith("published")]
    ((arm, exact_match, *_, protocol),) = table.rows
    assert "Qwen3-VL-2B" in arm
    assert exact_match.startswith("0.3503; 0.")
    assert "optimiser steps: 40, here 60" in protocol
    assert "test questions: 451, here 60" in protocol
    assert "LoRA dropout: 0.05, here 0.0" in protocol
    assert "learning rate" not in protocol
    assert NOT_STATED in "".join(table.notes)


def test_latex_and_markdown_escape_what_would_break_them(study):
    (table, *_) = tables(study)
    table = replace(table, rows=(("a_b & 50%", "x|y"),))
    assert r"a\_b \& 50\%" in latex(table)
    assert "x\\|y" in markdown(table)


def test_brackets_in_a_cell_reach_the_terminal(study):
    (table, *_) = tables(study)
    table = replace(table, title="[bold] title", rows=(("modules=[q_proj] \\", "[/red]"),))
    terminal = console()
    with terminal.capture() as capture:
        terminal.print(rich_table(table))
    for text in ("[bold] title", "modules=[q_proj] \\", "[/red]"):
        assert text in capture.get()


def test_each_picture_is_there_once_and_belongs_to_its_questions(study, asked):
    pictures = read_pictures(study.arms)
    assert set(pictures.urls) == {name for example in asked for name in example.image_ids}
    assert all(pictures.shown["+".join(e.image_ids)] == e.image_ids for e in asked)
    assert all(url.startswith("data:image/jpeg;base64,/9j/") for url in pictures.urls.values())


def test_data_that_is_gone_costs_its_pictures_and_not_the_report(written, tmp_path):
    written(tmp_path / "run", "data=vqa_rad", f"data.path={tmp_path / 'gone'}")
    pictures = read_pictures(read_study([tmp_path]).arms)
    assert pictures.urls == {}
    assert "no pictures of test" in pictures.notes[0]
    assert str(tmp_path / "gone") in pictures.notes[0]


def test_the_compact_form_holds_every_prediction(study, grid):
    keys = Texts()
    form = encode(study.arms, "test", read_pictures(study.arms).shown, keys)
    columns = [c for c in form["columns"] if c["phase"] == "final"]
    assert len(columns) == 9
    assert sum(c["phase"] == "zero_shot" for c in form["columns"]) == 1
    for column in columns:
        rows = read_lines(Path(column["run"]) / "evaluation" / "final" / "test/predictions.jsonl")
        by_id = {row["id"]: row for row in rows}
        for question, options, code in zip(
            form["questions"], form["options"], column["codes"], strict=True
        ):
            text, *values = options[code]
            row = by_id[question[0]]
            assert form["texts"][text] == row["prediction"]
            assert [form["texts"][r] for r in question[2]] == row["references"]
            assert values[form["metrics"].index("exact_match")] == row["exact_match"]
            assert values[form["metrics"].index("f1")] == pytest.approx(row["f1"], abs=1e-4)


def test_a_question_that_a_run_was_not_asked_has_no_answer_of_it(written, asked, tmp_path):
    written(tmp_path / "a", "curriculum=mixed", examples=asked[:30])
    written(tmp_path / "b", "curriculum=open_first", examples=asked[20:60])
    arms = read_study([tmp_path], Settings(allow_unequal=True, num_samples=20)).arms
    form = encode(arms, "test", {}, Texts())
    a, b = (c["codes"] for c in form["columns"] if c["phase"] == "final")
    assert [code >= 0 for code in a] == [True] * 30 + [False] * 30
    assert [code >= 0 for code in b] == [False] * 20 + [True] * 40
    rows = read_lines(tmp_path / "b" / "evaluation" / "final" / "test" / "predictions.jsonl")
    answers = [form["texts"][form["options"][place][b[place]][0]] for place in range(20, 60)]
    assert answers == [row["prediction"] for row in rows]


def test_an_answer_cannot_break_out_of_the_page(written, tmp_path):
    rude = '</script><script>alert("{{study}}")</script>'
    written(tmp_path / "run", answer=lambda example, phase: rude)
    text = page(read_study([tmp_path]), read_pictures(()), title="</title>")
    assert rude not in text
    assert text.count("</script>") == 4
    assert text.count("</title>") == 1
    data = text.split('id="answers-data">')[1].split("</script>")[0]
    assert rude in json.loads(data)["sets"][0]["texts"]
