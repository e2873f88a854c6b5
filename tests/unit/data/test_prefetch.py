"""Work done by threads: in order, not further ahead than told, and not done when nobody asks."""

import threading

import pytest

from medvqa.data.prefetch import ahead
from tests.conftest import wait_for


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_results_come_in_order_whichever_is_ready_first(num_threads):
    first_may_end = threading.Event()
    if num_threads < 2:
        first_may_end.set()  # nobody else could

    def double(number):
        if number == 0:
            assert first_may_end.wait(timeout=60)
        if number == 1:
            first_may_end.set()
        return 2 * number

    assert [*ahead(double, range(9), num_threads=num_threads)] == [*range(0, 18, 2)]


@pytest.mark.parametrize(("options", "most"), [({}, 2), ({"num_waiting": 5}, 5)])
def test_no_more_is_done_than_may_wait(options, most):
    done = []
    results = ahead(lambda n: done.append(n) or n, range(100), num_threads=2, **options)
    for number in range(10):
        assert next(results) == number
        wait_for(lambda told=number + 1 + most: len(done) == told)
    results.close()
    assert len(done) <= 10 + most


def test_an_error_comes_where_its_result_would():
    results = ahead(lambda n: 6 // n, [3, 2, 0, 1], num_threads=2)
    assert [next(results), next(results)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)
