"""The pictures of a run: what they say is right, readable, and never ends a run."""

import logging
import math
import os
import subprocess
import sys
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from medvqa.data.example import Score
from medvqa.evaluation.contact_sheet import (
    BOX_PX,
    COLUMNS,
    cell_lines,
    choose_samples,
    draw_samples,
    wrapped,
)
from medvqa.evaluation.phase_scores import Evaluation
from medvqa.evaluation.plots import draw_loss, draw_metrics, draw_pictures, smoothed
from medvqa.tracking.record import write_text

# In a process of its own, because matplotlib reads the environment once.
DRAWING = """
import os, sys
from pathlib import Path
from medvqa.evaluation.plots import draw_pictures
assert "matplotlib" not in sys.modules
assert list(draw_pictures(Path("."), [], {}, seed=0)) == ["loss"]
print(os.environ.get("MPLBACKEND"), dict.get(sys.modules["matplotlib"].rcParams, "backend"))
"""


def step_row(step, stage, loss=1.0):
    return {"step": step, "loss": loss, "learning_rate": 1e-4 * step, "stage": stage}


def prediction(example, *, is_right, answer="a lung", **changes):
    return {
        "id": example.id,
        "question": example.question,
        "references": list(example.answers),
        "prediction": answer,
        "answer_type": example.answer_type,
        "exact_match": is_right,
        "f1": float(is_right),
        **changes,
    }


def evaluation(phase, mean, *, groups=("overall", "open", "closed"), set_name="test"):
    score = Score(mean=mean, low=mean - 0.1, high=mean + 0.1, num_examples=40)
    summary = {group: {"exact_match": score, "f1": score} for group in groups}
    return Evaluation(phase=phase, set_name=set_name, step=1, summary=summary, num_cut_answers=0)


def texts_of(axes_or_figure):
    return [text.get_text() for text in axes_or_figure.texts]


def boxes(figure):
    """Return the drawn extent of each text of the figure, in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return [text.get_window_extent(canvas.get_renderer()) for text in figure.texts]


def overlapping(one, other):
    return (
        min(one.x1, other.x1) - max(one.x0, other.x0) > 1
        and min(one.y1, other.y1) - max(one.y0, other.y0) > 3  # lines of one text may touch
    )


def test_a_running_mean_takes_the_last_values_and_leaves_gaps_where_the_loss_is_not_finite():
    means = smoothed([3.0, 1.0, math.nan, 5.0], 2)
    assert means[:2] == [3.0, 2.0]
    assert math.isnan(means[2])
    assert means[3] == 5.0


def test_the_loss_shows_every_step_and_names_the_stages_in_order_with_their_steps():
    rows = [step_row(i, "open", loss=4 - i / 10) for i in range(1, 21)]
    rows += [step_row(i, "closed", loss="NaN" if i == 25 else 1.0) for i in range(21, 31)]
    figure = draw_loss(rows)
    top, bottom = figure.axes
    assert texts_of(top) == ["open (20 steps)", "closed (10 steps)"]
    x, y = top.lines[0].get_data()
    assert list(x) == list(range(1, 31))
    assert y[0] == 3.9
    assert math.isnan(y[24])
    assert bottom.lines[0].get_ydata()[-1] == pytest.approx(3e-3)
    assert [round(patch.get_x(), 1) for patch in top.patches] == [20.5]


def test_metrics_show_each_phase_against_the_baselines_with_interval_and_n():
    evaluations = [evaluation("majority", 0.3), evaluation("after_open", 0.5)]
    evaluations += [evaluation("final", 0.6)]
    figure = draw_metrics(evaluations)
    overall = figure.axes[0]
    assert [tick.get_text() for tick in overall.get_yticklabels()] == [
        *("majority", "after open", "final")
    ]
    assert overall.get_title() == "overall (n = 40)"
    assert texts_of(overall) == ["0.600", "0.600"]
    means = [bar.lines[0].get_xdata()[0] for bar in overall.containers]
    assert means == [0.3, 0.3, 0.5, 0.5, 0.6, 0.6]
    (segment,) = overall.containers[-1].lines[2][0].get_segments()
    assert [round(x, 6) for x, _ in segment] == [0.5, 0.7]


def test_a_set_without_a_type_says_so_and_several_sets_have_a_row_each():
    figure = draw_metrics(
        [
            evaluation("final", 0.5),
            evaluation("final", 0.5, set_name="shifted", groups=("overall", "open")),
        ]
    )
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()] == ["test", "shifted"]
    assert figure.axes[5].get_title() == "closed: no such question"


def test_samples_hold_right_and_wrong_open_and_closed_alike_and_the_seed_chooses(phantoms):
    rows = [prediction(example, is_right=i % 7 == 0) for i, example in enumerate(phantoms)]
    chosen = choose_samples(rows, num=12, seed=1)
    kinds = [(row["answer_type"], row["exact_match"]) for row in chosen]
    assert {kind: kinds.count(kind) for kind in kinds} == dict.fromkeys(set(kinds), 3)
    assert len(set(kinds)) == 4
    assert chosen == choose_samples(rows, num=12, seed=1) != choose_samples(rows, num=12, seed=2)


def test_a_kind_without_enough_rows_leaves_its_place_to_the_others(phantoms):
    rows = [prediction(example, is_right=i == 0) for i, example in enumerate(phantoms)]
    chosen = choose_samples(rows, num=12, seed=0)
    assert len({row["id"] for row in chosen}) == 12
    assert [row["exact_match"] for row in chosen].count(True) == 1
    assert len(choose_samples(rows[:5], num=12, seed=0)) == 5


def test_a_text_is_wrapped_between_words_broken_where_it_must_be_and_visibly_cut():
    assert wrapped("the left lung is", 8, 3) == ["the left", "lung is"]
    assert wrapped("pneumothorax", 5, 3) == ["pneum", "othor", "ax"]
    assert wrapped("one two three four", 8, 2) == ["one two", "three…"]
    assert wrapped("肺部有结节", 8, 2) == ["肺部有结", "节"]
    assert wrapped("", 8, 2) == []


def test_a_cell_shows_the_question_the_reference_and_the_answer(phantoms):
    row = prediction(phantoms[0], is_right=False, answer="", references=["left", "left lung"])
    lines = cell_lines(row, 6)
    assert lines[0] == "✗ wrong · open · F1 0.00 · 2 more images"
    assert lines[1:] == [
        f"Q: {phantoms[0].question}",
        "reference: left (or 1 more)",
        "answer: (empty)",
    ]


def test_no_text_of_the_sheet_overlaps_or_leaves_it_whatever_the_model_said(phantoms):
    texts = ["costs $5 and $x^2 < 3_a", "a very long answer " * 60, "WWMM" * 90, "肺部" * 60, ""]
    examples = [
        replace(e, images=e.images * (1 + i % 5), image_ids=e.image_ids * (1 + i % 5))
        for i, e in enumerate(phantoms[:40])
    ]
    rows = [
        prediction(e, is_right=i % 2 == 0, answer=texts[i % 5], question=texts[(i + 1) % 5] or "Q")
        for i, e in enumerate(examples)
    ]
    with pytest.warns(UserWarning, match="missing from font"):
        figure = draw_samples(rows, examples, set_name="test", seed=0)
        frames = boxes(figure)
    width, height = figure.get_size_inches() * figure.dpi
    assert len(figure.images) == len(figure.artists) == 12
    assert all(b.x0 >= 0 and b.x1 <= width and b.y0 >= 0 and b.y1 <= height for b in frames)
    cell = width / COLUMNS
    assert all(int(b.x0 / cell) == int(b.x1 / cell) for b in frames[1:])  # the first is the title
    for number, one in enumerate(frames):
        assert not any(overlapping(one, other) for other in frames[number + 1 :])


def test_every_picture_is_a_png_of_a_readable_size_without_touching_pyplot(tmp_path, phantoms):

    before = "matplotlib.pyplot" in sys.modules
    write_run(tmp_path, phantoms[:20])
    drawn = draw_pictures(tmp_path, [evaluation("final", 0.5)], {"test": phantoms[:20]}, seed=0)
    assert list(drawn) == ["loss", "metrics", "samples"]
    for path in drawn.values():
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 250
            assert np.asarray(picture.convert("L")).std() > 10
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_pictures_leave_the_style_of_the_callers_own_figures(tmp_path, phantoms):
    write_run(tmp_path, phantoms[:4])
    before = dict(dict.items(mpl.rcParams))  # plain, so that no backend is chosen here
    draw_pictures(tmp_path, [evaluation("final", 0.5)], {"test": phantoms}, seed=0)
    assert dict(dict.items(mpl.rcParams)) == before


def test_pictures_do_not_depend_on_the_users_backend_or_style_nor_change_them(tmp_path, phantoms):
    write_run(tmp_path, phantoms[:4])
    style = tmp_path / "matplotlibrc"
    style.write_text("text.usetex: True\nfigure.facecolor: red\n")
    pictures = []
    for backend, rc in (("nope", os.devnull), ("tkagg", str(style))):
        env = {**os.environ, "MPLBACKEND": backend, "MATPLOTLIBRC": rc}
        answer = subprocess.run(
            [sys.executable, "-c", DRAWING],
            cwd=tmp_path,
            env=env,
            stdout=subprocess.PIPE,
            check=True,
        )
        pictures.append((tmp_path / "loss.png").read_bytes())
    assert pictures[0] == pictures[1]
    assert answer.stdout.decode().split() == ["tkagg", "tkagg"]


def test_each_picture_of_a_sample_is_whole_inside_its_own_frame(phantoms):
    examples = [replace(e, images=e.images * n) for n, e in enumerate(phantoms[:6], start=1)]
    rows = [prediction(example, is_right=True) for example in examples]
    sheet = draw_samples(rows, examples, set_name="test", seed=0)
    for picture, frame in zip(sheet.images, sheet.artists, strict=True):
        height, width = picture.get_size()
        assert frame.get_bbox().bounds == (picture.ox, picture.oy, width, height)
        assert width <= BOX_PX[0]
        assert height <= BOX_PX[1]
        assert width in (BOX_PX[0], BOX_PX[0] - 1) or height in (BOX_PX[1], BOX_PX[1] - 1)


def test_a_picture_that_cannot_be_drawn_is_an_error_in_the_log_and_the_others_are_there(
    tmp_path, phantoms, caplog
):
    write_run(tmp_path, phantoms[:4])
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with caplog.at_level(logging.ERROR):
        drawn = draw_pictures(tmp_path, [evaluation("final", 0.5)], {"test": phantoms}, seed=0)
    assert list(drawn) == ["metrics", "samples"]
    assert "loss.png could not be drawn" in caplog.text


def test_a_run_without_an_evaluation_set_has_its_loss(tmp_path, phantoms):
    write_run(tmp_path, phantoms[:4])
    assert list(draw_pictures(tmp_path, [], {}, seed=0)) == ["loss"]


def write_run(directory, examples):
    """Write what `draw_pictures` reads."""
    import json

    rows = [step_row(i, "open" if i < 5 else "closed") for i in range(1, 9)]
    write_text(directory / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    predictions = [prediction(e, is_right=i % 2 == 0) for i, e in enumerate(examples)]
    path = directory / "evaluation" / "final" / "test" / "predictions.jsonl"
    write_text(path, "".join(json.dumps(row) + "\n" for row in predictions))
