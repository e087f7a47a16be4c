import threading
import time
from collections.abc import Iterator

import pytest

from slidescreen.overlap import Ahead, Clock


def test_items_come_in_order_and_few_are_held() -> None:
    made = 0

    def numbers() -> Iterator[int]:
        nonlocal made
        for i in range(100):
            made += 1
            yield i

    ahead = Ahead(numbers(), 3, threading.Event())
    assert next(ahead) == 0
    time.sleep(0.2)
    assert made <= 6
    assert list(ahead) == list(range(1, 100))
    ahead.close()


def test_an_error_is_raised_in_its_place() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("lost")

    ahead = Ahead(broken(), 3, threading.Event())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="lost"):
        next(ahead)
    ahead.close()


def test_close_ends_a_chain_that_waits() -> None:
    stop = threading.Event()

    def endless() -> Iterator[int]:
        while True:
            yield 1

    first = Ahead(endless(), 2, stop)
    second = Ahead((i + 1 for i in first), 2, stop)
    assert next(second) == 2
    started = time.monotonic()
    second.close()
    first.close()
    assert time.monotonic() - started < 5
    assert not any(t.is_alive() for t in (first._thread, second._thread))


def test_clock_leaves_waiting_out() -> None:
    clock = Clock()

    def slow() -> Iterator[int]:
        for i in range(3):
            time.sleep(0.05)
            yield i

    list(clock.stage("b", (x for x in clock.waiting("b", clock.stage("a", slow())))))
    assert clock.seconds["a"] >= 0.15
    assert clock.seconds["b"] < 0.05
