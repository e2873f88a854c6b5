import io
import re
import time

import pytest

from medvqa.tracking.progress import rate, track


class Terminal(io.StringIO):
    def isatty(self):
        return True


def terminal(monkeypatch):
    """Put a terminal in the place of stderr; pytest undoes that between a fixture and its test."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    return stream


def lines(stream):
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()]


def test_a_phase_shows_rate_and_time_left_and_a_phase_inside_it_has_a_line(monkeypatch):
    stream = terminal(monkeypatch)
    for _ in track(range(6), description="training [x]"):
        time.sleep(0.15)
        assert list(track("ab", description="answering")) == ["a", "b"]
    shown = lines(stream)
    assert any(re.search(r"training \[x\].* [3-5]/6 .*(/s|s each) 00:0. left", s) for s in shown)
    assert any(s.startswith("answering") for s in shown)


def test_an_error_inside_a_phase_ends_its_display(monkeypatch):
    terminal(monkeypatch)
    with pytest.raises(KeyError):
        for _ in track([1], description="one"):
            raise KeyError
    assert list(track([1, 2], description="two")) == [1, 2]


def test_without_a_terminal_a_short_phase_is_silent(capsys, caplog):
    caplog.set_level("INFO")
    assert list(track([1, 2], description="quiet")) == [1, 2]
    assert capsys.readouterr() == ("", "") and not caplog.messages


def test_without_a_terminal_a_long_phase_logs_a_line_from_time_to_time(monkeypatch, caplog):
    caplog.set_level("INFO")
    clock = iter(range(0, 1000, 25))
    monkeypatch.setattr("medvqa.tracking.progress.time.monotonic", lambda: next(clock))
    assert list(track("abcdef", description="training")) == list("abcdef")
    assert caplog.messages == ["training: 3 of 6, 25.0 s each, about 1 min left"]


def test_a_slow_item_is_counted_in_seconds():
    assert (rate(None), rate(2.5), rate(0.25)) == ("", "2.5/s", "4.0 s each")
