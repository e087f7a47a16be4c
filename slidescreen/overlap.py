"""Stages side by side: an iterator that runs ahead of its consumer in a thread of its own, a few items at most."""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, Generic, TypeVar

T = TypeVar("T")
POLL_S: Final = 0.1
_END: Final = object()


_granted: int | None = None


def grant_cores(number: int) -> None:
    """From now on `usable_cores` tells at most so many in this process: what one worker of several is meant to use."""
    global _granted
    _granted = number


def usable_cores() -> int:
    """Cores that this process really has, at least one: of its affinity, and no more than its control groups allow, or than
    it was granted."""
    ours = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(ours, quota_cores() or ours, _granted or ours))


def quota_cores(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """The processor time that control groups (version 1 or 2) grant this process, in whole cores rounded up; None for no limit.

    The tightest limit of its group and those above counts. Containers see their own group as the topmost.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    shares: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        tops = [groups / name for name in (controllers, "cpu")] if controllers else [groups, groups / "unified"]
        for top in tops:
            group = top / path.lstrip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(top):
                    shares += _shares(folder)
    return math.ceil(min(shares)) if shares else None


def _shares(folder: Path) -> list[float]:
    """Cores granted by the files of one control group."""
    found = []
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            words = " ".join((folder / name).read_text(encoding="utf-8") for name in files).split()
            found.append(float(words[0]) / float(words[1]))
        except (OSError, ValueError, IndexError, ZeroDivisionError):
            continue  # not there, or "max"
    return [cores for cores in found if cores > 0]  # -1: no limit


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
    """Seconds that stages, which wait for each other, are busy and that they wait: for what they work on, or, once done with
    it, until the next one takes it. Each stage is timed by one thread."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.waits: dict[str, float] = {}

    def add(self, stage: str, seconds: float) -> None:
        """Add to a stage's busy seconds."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def _wait(self, stage: str, seconds: float) -> None:
        self.waits[stage] = self.waits.get(stage, 0.0) + seconds

    def stage(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """Pass items on; the time it takes to make them is the stage's, until they are taken it waits."""
        for item in _timed(items, lambda seconds: self.add(stage, seconds)):
            made = time.perf_counter()
            yield item
            self._wait(stage, time.perf_counter() - made)

    def waiting(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """Pass items on to `stage`; the time until they come is not its own, it waits."""

        def note(seconds: float) -> None:
            self.add(stage, -seconds)
            self._wait(stage, seconds)

        return _timed(items, note)


def _timed(items: Iterable[T], note: Callable[[float], None]) -> Iterator[T]:
    """Pass items on; `note` hears how many seconds each took to come, and the end or an error."""
    iterator = iter(items)
    while True:
        start = time.perf_counter()
        try:
            item = next(iterator)
        except StopIteration:
            return
        finally:
            note(time.perf_counter() - start)
        yield item
