import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from slidescreen.overlap import Ahead, Clock, grant_cores, quota_cores, usable_cores


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


def test_a_worker_tells_no_more_cores_than_it_was_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slidescreen.overlap._granted", None)
    most = usable_cores()
    grant_cores(1)
    assert usable_cores() == 1
    grant_cores(most + 1)
    assert usable_cores() == most


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


def test_clock_tells_who_waits_for_whom() -> None:
    clock, stop = Clock(), threading.Event()

    def quick() -> Iterator[int]:
        yield from range(6)

    first = Ahead(clock.stage("quick", quick()), 1, stop)
    for _ in clock.stage("slow", (time.sleep(0.05) or x for x in clock.waiting("slow", first))):
        pass
    first.close()
    assert clock.seconds["slow"] >= 0.28
    assert clock.waits["slow"] < 0.1
    assert clock.waits["quick"] > 0.1
    assert clock.seconds["quick"] < 0.05
    clock = Clock()

    def slow() -> Iterator[int]:
        for i in range(4):
            time.sleep(0.05)
            yield i

    late = Ahead(clock.stage("slow", slow()), 1, threading.Event())
    assert len(list(clock.stage("quick", clock.waiting("quick", late)))) == 4
    late.close()
    assert clock.waits["quick"] > 0.15
    assert clock.waits["slow"] < 0.1


def paint(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/", {"cpu.max": "max 100000\n"}, None),
        ("0::/pod/box", {"cpu.max": "max 100000", "pod/cpu.max": "300000 100000", "pod/box/cpu.max": "max 100000"}, 3),
        ("0::/pod/box", {"pod/cpu.max": "400000 100000", "pod/box/cpu.max": "50000 100000"}, 1),
        (
            "3:cpuset:/\n1:cpu,cpuacct:/box",
            {"cpu,cpuacct/box/cpu.cfs_quota_us": "250000", "cpu,cpuacct/box/cpu.cfs_period_us": "100000"},
            3,
        ),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ("9:memory:/x", {"memory/x/cpu.max": "100000 100000"}, None),
        ("0::/", {"cpu.max": "what"}, None),
    ],
)
def test_quota_of_control_groups(tmp_path: Path, own: str, files: dict[str, str], cores: int | None) -> None:
    paint(tmp_path / "groups", files)
    (tmp_path / "own").write_text(own + "\n")
    assert quota_cores(tmp_path / "groups", tmp_path / "own") == cores


def test_no_control_groups_no_quota(tmp_path: Path) -> None:
    assert quota_cores(tmp_path, tmp_path / "none") is None
    assert usable_cores() >= 1


def test_a_quota_bounds_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slidescreen.overlap.os.sched_getaffinity", lambda _pid: set(range(64)), raising=False)
    monkeypatch.setattr("slidescreen.overlap.quota_cores", lambda: 3)
    assert usable_cores() == 3
    monkeypatch.setattr("slidescreen.overlap.quota_cores", lambda: None)
    assert usable_cores() == 64
