"""Answers files of any origin are read, or refused with file and line."""

import codecs
import json
from pathlib import Path

import pytest

from medvqa.config.errors import UserError
from medvqa.evaluation.predictions import aligned, parse_columns, read_predictions

ROWS = [
    {"id": "7", "gt_ans": "left\u2028lung", "model_answer": 'a "left" lung', "image": "x.jpg"},
    {"id": "8", "gt_ans": "Yes.", "model_answer": "yes, it is", "image": "x.jpg"},
]


def as_table(delimiter: str) -> str:
    cells = [list(ROWS[0]), *(list(row.values()) for row in ROWS)]
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in cells]
    return "\r\n".join(delimiter.join(row) for row in quoted) + "\r\n"


FILES = {
    "lines.jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n",
    "crlf.jsonl": "\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS),
    "array.json": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "table.csv": as_table(","),
    "semicolons.csv": as_table(";"),
    "table.tsv": as_table("\t"),
}


@pytest.mark.parametrize("has_bom", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_answers(tmp_path, name, has_bom):
    path = tmp_path / name
    path.write_bytes((codecs.BOM_UTF8 if has_bom else b"") + FILES[name].encode())
    answers = read_predictions(path).predictions
    assert [(a.id, a.references, a.prediction, a.cluster, a.answer_type) for a in answers] == [
        ("7", ("left\u2028lung",), 'a "left" lung', "x.jpg", "open"),
        ("8", ("Yes.",), "yes, it is", "x.jpg", "closed"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", "", "holds no predictions"),
        ("p.jsonl", '{"prediction": "a"}', "line 1 has none of references, .*--columns reference="),
        ("p.jsonl", '{"gt": "a", "pred": "a"}\n{"gt": "b", "pre', "line 2 is no JSON"),
        ("p.jsonl", '{"answer": [], "prediction": "a"}', "line 1 has an empty list of references"),
        ("p.jsonl", '{"gt": "a", "pred": "a", "qtype": "x"}', "neither open nor closed"),
        ("p.jsonl", '{"gt": "a", "pred": null}', "line 1: pred is null"),
        ("p.jsonl", '{"gt": "a", "pred": "a"}\n{"gt": "a", "pred": NaN}', "line 2: pred is NaN"),
        ("p.jsonl", '{"gt": ["a", null], "pred": "a"}', "line 1: gt is null"),
        ("p.jsonl", '{"gt": "a", "pred": ["b"]}', "line 1: pred is a list"),
        ("p.jsonl", '{"gt": {"b": 1}, "pred": "a"}', "line 1: gt is a dict"),
        ("p.jsonl", "[" * 300_000, "nested too deeply"),
        ("p.json", "[1, 2]", "row 1 is no JSON object"),
        ("p.csv", "gt,pred\na,nan\n", "line 2: pred is"),
        ("p.csv", "gt,pred\na,b,c\n", "line 2 has not as many cells"),
        ("p.csv", "gt,pred\na\n", "line 2 has not as many cells"),
    ],
)
def test_a_bad_file_names_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_predictions(tmp_path / name)
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def test_an_unknown_file_shows_ten_keys_and_the_option(tmp_path):
    row = {f"key{number}": number for number in range(30)}
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match="key9 and 20 more; name the column: --columns") as error:
        read_predictions(tmp_path / "p.jsonl")
    assert "key10" not in str(error.value)
    columns = parse_columns("prediction=key3,reference=key4")
    (answer,) = read_predictions(tmp_path / "p.jsonl", columns).predictions
    assert (answer.prediction, answer.references) == ("3", ("4",))
    with pytest.raises(UserError, match="the fields are prediction, reference"):
        parse_columns("answr=key3")


def test_true_is_yes_and_numbers_are_texts(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"gt": "yes", "pred": true}\n{"gt": 3, "pred": 3.5}\n')
    answers = read_predictions(tmp_path / "p.jsonl").predictions
    assert [(a.references, a.prediction) for a in answers] == [(("yes",), "yes"), (("3",), "3.5")]


EMPTY = '{"gt": "a", "pred": "b", "id": %s, "image": %s, "answer_type": %s, "question": %s}'


@pytest.mark.parametrize("empty", ["null", "NaN", '""', '"nan"'])
def test_an_empty_optional_value_is_none_and_merges_no_pictures(tmp_path, empty):
    (tmp_path / "p.jsonl").write_text("\n".join([EMPTY % ((empty,) * 4)] * 2))
    answers = read_predictions(tmp_path / "p.jsonl")
    assert [p.cluster for p in answers.predictions] == ["line 1", "line 2"]
    assert [p.id for p in answers.predictions] == ["1", "2"]
    assert {(p.question, p.answer_type) for p in answers.predictions} == {("", "open")}
    assert not answers.has_clusters
    assert "2 of 2 rows name no image" in "\n".join(answers.notes)


@pytest.mark.parametrize("cell", ['["yes", "it is"]', "['yes', 'it is']"])
def test_a_list_in_a_tables_cell_is_several_references(tmp_path, cell):
    quoted = cell.replace('"', '""')
    (tmp_path / "p.csv").write_text(f'pred,references\nyes,"{quoted}"\nyes,"[unclear]"\n')
    several, one = read_predictions(tmp_path / "p.csv").predictions
    assert several.references == ("yes", "it is")
    assert one.references == ("[unclear]",)


@pytest.mark.parametrize("delimiter", "|;\t,")
def test_a_long_answer_and_any_delimiter_are_read(tmp_path, delimiter):
    answer = "word " * 40_000
    (tmp_path / "p.csv").write_text(f"pred{delimiter}gt\n{answer}{delimiter}yes\n")
    assert read_predictions(tmp_path / "p.csv").predictions[0].prediction == answer


def test_a_device_is_refused_before_it_fills_the_memory():
    with pytest.raises(UserError, match=r"cannot read /dev/zero: it is a device"):
        read_predictions(Path("/dev/zero"))


def test_what_a_file_leaves_open_is_noted(tmp_path):
    lines = ['{"id": 1, "answer": "Yes", "pred": "no"}', '{"id": 1, "label": 3, "pred": " "}']
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    notes = "\n".join(read_predictions(tmp_path / "p.jsonl").notes)
    for note in ("name no type", "name no image", "several rows; each row counts: 1", "are empty"):
        assert note in notes
    (tmp_path / "q.jsonl").write_text('{"gt": "a", "pred": "b", "finish_reason": "length"}')
    assert "1 of 1 answers were cut" in "\n".join(read_predictions(tmp_path / "q.jsonl").notes)


def test_two_files_are_paired_by_id_or_refused(tmp_path):
    def answers(name, *rows):
        path = tmp_path / name
        path.write_text("\n".join(json.dumps({"id": i, "gt": g, "pred": p}) for i, g, p in rows))
        return read_predictions(path), path

    first, _ = answers("a", (1, "x", "x"), (2, "y", "y"))
    second, path = answers("b", (2, "y", "z"), (1, "x", "w"))
    assert [p.prediction for p in aligned(first, second, path)] == ["w", "z"]
    for rows, message in (
        ([(1, "x", "x"), (3, "y", "y")], "lacks 1 ids and has 1 more"),
        ([(1, "x", "x"), (2, "other", "y")], "the reference is 'other'"),
        ([(1, "x", "x"), (1, "x", "y")], "stands in several rows"),
    ):
        third, path = answers("c", *rows)
        with pytest.raises(UserError, match=message):
            aligned(first, third, path)


@pytest.mark.parametrize("stored", [["left", "right"], "left|right", {"A": "left", "B": "right"}])
def test_options_are_read_from_lists_tables_and_letters(tmp_path, stored):
    row = {"gt": "left", "pred": "A", "options": stored}
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    assert read_predictions(tmp_path / "p.jsonl").predictions[0].options == ("left", "right")


def test_a_table_is_known_by_its_content_and_names_each_column_once(tmp_path):
    (tmp_path / "answers.txt").write_text(as_table(","))
    assert len(read_predictions(tmp_path / "answers.txt").predictions) == 2
    (tmp_path / "p.csv").write_text("gt,pred,pred\na,b,c\n")
    with pytest.raises(UserError, match="line 1 names the column 'pred' twice"):
        read_predictions(tmp_path / "p.csv")
    (tmp_path / "p.jsonl").write_text('{"gt": "a", "pred": "a", "pred": "b"}')
    with pytest.raises(UserError, match=r"line 1 is no JSON .*'pred' stands in it twice"):
        read_predictions(tmp_path / "p.jsonl")
    (tmp_path / "p.json").write_text("[]")
    with pytest.raises(UserError, match="holds no predictions"):
        read_predictions(tmp_path / "p.json")


def test_a_second_column_that_could_be_meant_is_named(tmp_path):
    row = {
        "question": "q",
        "answer": "a",
        "gt_answer": "b",
        "response": "c",
        "question_type": "PRES",
    }
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    answers = read_predictions(tmp_path / "p.jsonl")
    assert answers.predictions[0].references == ("a",)
    notes = "\n".join(answers.notes)
    assert "each reference is read from answer, not from gt_answer; --columns" in notes
    assert "1 of 1 rows name no type" in notes
