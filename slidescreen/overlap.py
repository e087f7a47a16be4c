"""Stages side by side: an iterator that runs ahead of its consumer in a thread of its own, a few items at most."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Final, Generic, TypeVar

T = TypeVar("T")
POLL_S: Final = 0.1
_END: Final = object()


def usable_cores() -> int:
    """Cores that this process may run on (its affinity), at least one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Ahead(Iterator[T], Generic[T]):
    """Iterates `items` in a thread and holds at most `depth` of them. An error there is raised here, in its place.

    `stop` is shared by the stages of one slide: once set, all of them end at their next item. `close` sets it and waits.
    """

    def __init__(self, items: Iterable[T], depth: int, stop: threading.Event) -> None:
        self._items = items
        self._stop = stop
        self._queue: queue.Queue[object] = queue.Queue(maxsize=depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for item in self._items:
                self._put(item)
                if self._stop.is_set():
                    return
        except BaseException as error:  # handed to the consumer, who raises it
            self._error = error
        self._put(_END)

    def _put(self, item: object) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=POLL_S)
            except queue.Full:
                continue

    def __next__(self) -> T:
        while not self._stop.is_set():
            try:
                item = self._queue.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if item is _END:
                if self._error is not None:
                    raise self._error
                raise StopIteration
            return item  # type: ignore[return-value]  # only T and _END are ever put
        raise StopIteration

    def close(self) -> None:
        """End the thread and wait for it."""
        self._stop.set()
        self._thread.join()


class Clock:
    """Busy seconds per stage, of stages that wait for each other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def add(self, stage: str, seconds: float) -> None:
        """Add to a stage's seconds; each stage is timed by one thread."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def stage(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """Pass items on; the time it takes to make them is the stage's."""
        yield from self._timed(stage, items, 1)

    def waiting(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """Pass items on to `stage`; the time it waits for them is not its own."""
        yield from self._timed(stage, items, -1)

    def _timed(self, stage: str, items: Iterable[T], sign: int) -> Iterator[T]:
        iterator = iter(items)
        while True:
            start = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self.add(stage, sign * (time.perf_counter() - start))
            yield item
