"""Results that threads compute in advance."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    num_threads: int,
    num_waiting: int | None = None,
    initializer: Callable[[], None] | None = None,
) -> Generator[Result]:
    """Yield the function's results in order, while threads compute the next ones.

    Args:
        function: Computes a result.
        items: Its arguments, in order.
        num_threads: Without threads, each result is computed when the caller takes it.
        num_waiting: Results that may be ready before the caller takes them; one per thread if None.
        initializer: Called first in each thread.
    """
    if num_threads == 0:
        yield from map(function, items)
        return
    num_ahead = num_threads if num_waiting is None else num_waiting
    remaining = iter(items)
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(num_threads, initializer=initializer) as pool:
        try:
            for item in remaining:
                waiting.append(pool.submit(function, item))
                if len(waiting) > num_ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
