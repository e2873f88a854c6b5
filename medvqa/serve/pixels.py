"""A limit on the pixels that all threads decode at once, so that memory is bounded."""

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

LARGE_PIXELS = 8_000_000  # decoding that many takes 150 MB, which the C library would keep


class PixelLimit:
    """Lets threads decode while their pictures together stay below the limit; others wait.

    A picture above the limit is decoded alone.
    """

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._num_free = max_pixels
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, num_pixels: int) -> Iterator[None]:
        """Wait for room, and keep it while the block runs."""
        share = min(num_pixels, self._max_pixels)
        with self._changed:
            self._changed.wait_for(lambda: self._num_free >= share)
            self._num_free -= share
        try:
            yield
        finally:
            if num_pixels >= LARGE_PIXELS:
                return_free_memory()
            with self._changed:
                self._num_free += share
                self._changed.notify_all()


def return_free_memory() -> None:
    """Give freed memory back to the system, where the C library can (glibc)."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
