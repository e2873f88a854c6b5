"""The grid's title says how long the rest will take, from the cells that have ended."""

from dataclasses import replace

from medvqa.sweep.display import time_left
from medvqa.sweep.status import Row

ROW = Row(
    job=0, name="", overrides="", state="finished", slot="", step=None, num_steps=None, loss=None,
    exact_match=None, f1=None, seconds=600.0, error=None, directory="",
)  # fmt: skip
WAITING = replace(ROW, state="waiting", seconds=None)
RUNNING = replace(ROW, state="running", seconds=None, step=75, num_steps=100)


def test_waiting_cells_count_whole_and_running_ones_by_the_steps_that_are_left():
    assert time_left([ROW, RUNNING, WAITING]) == "; 600 s per cell, about 12 min left"


def test_cells_that_run_at_once_share_the_time():
    assert time_left([ROW, RUNNING, RUNNING, WAITING]) == "; 600 s per cell, about 8 min left"


def test_nothing_is_said_before_a_cell_has_ended_or_when_all_have():
    failed = replace(ROW, state="failed")
    for rows in ([RUNNING, WAITING], [ROW, failed], [failed, WAITING]):
        assert time_left(rows) == ""
