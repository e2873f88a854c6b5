"""How a process ends."""

import atexit
import gc


def leave_at_once() -> None:
    """Let this process end without a last walk of the collector through all that it holds.

    With torch and transformers these are a million objects, and freeing them one by one takes three
    seconds, which the system does at once. Exit handlers run as ever.
    """
    atexit.register(_freeze)


def _freeze() -> None:
    gc.disable()
    gc.freeze()
