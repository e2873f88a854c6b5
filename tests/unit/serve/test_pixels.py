"""The limit on decoded pixels: it holds at every moment, and nobody waits for ever."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from medvqa.serve.pixels import PixelLimit


def test_pixels_at_once_never_exceed_the_limit_and_all_are_decoded():
    limit, lock = PixelLimit(100), threading.Lock()
    held, peaks = [0], []

    def decode(num_pixels):
        with limit.hold(num_pixels):
            with lock:
                held[0] += min(num_pixels, 100)
                peaks.append(held[0])
            threading.Event().wait(0.001)
            with lock:
                held[0] -= min(num_pixels, 100)
        return num_pixels

    sizes = [1, 60, 100, 250, 40, 0, 30] * 10
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(decode, sizes)) == sizes
    assert max(peaks) <= 100
    assert max(peaks) > 60  # they really ran together


def test_an_error_gives_the_room_back():
    limit = PixelLimit(100)
    with pytest.raises(ValueError, match="broken"), limit.hold(100):
        raise ValueError("broken")
    with limit.hold(100):
        pass
