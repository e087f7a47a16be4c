"""Workers that die, hang, or are asked to stop."""

import os
import signal
import socket
import time
from multiprocessing.connection import Connection
from pathlib import Path

from jobs import job, tasks

from slidescreen.batch import SlideDone, SlideFailure
from slidescreen.batch.events import Finished, GivenUp, Job, Started, Stop
from slidescreen.batch.local import LocalExecutor
from slidescreen.batch.worker import HaltSlide, Outcome, Ready, Step


def fake_worker(pipe: Connection, job: Job) -> None:
    """Behaves as the name of the slide says."""
    signal.signal(signal.SIGABRT, signal.SIG_DFL)
    pipe.send(Ready("cpu"))
    while (task := pipe.recv()) is not None:
        if isinstance(task, HaltSlide):
            continue
        pipe.send(Step("screen", 1, 2, 3))
        if "crash" in task.name:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "hang" in task.name:
            time.sleep(600)
        if "slow" in task.name and isinstance(pipe.recv(), HaltSlide):
            pipe.send(Outcome(None, 0.1))
            continue
        half = Path(job.out) / f".{task.name}.partial-{socket.gethostname()}-{os.getpid()}"
        pipe.send(Outcome(SlideDone(task.path, half.with_name(task.name), False, None), 0.1))


def test_a_crash_and_a_hang_cost_one_slide_each(tmp_path: Path) -> None:
    (tmp_path / ".crash.partial-elsewhere-1").mkdir()
    with LocalExecutor(job(tmp_path, timeout_s=2.0), ["cpu"], fake_worker) as executor:
        events = list(executor.screen(tasks("crash", "a", "hang"), Stop()))
    finished = {e.task.name: e.outcome for e in events if isinstance(e, Finished)}
    assert list(finished) == ["crash", "a", "hang"]
    crash, hang = finished["crash"], finished["hang"]
    assert isinstance(finished["a"], SlideDone)
    assert isinstance(crash, SlideFailure)
    assert (crash.error_class, crash.stage, crash.transient) == ("WorkerDied", "screen", False)
    assert "SIGSEGV (native code crashed" in crash.message
    assert isinstance(hang, SlideFailure)
    assert hang.error_class == "TimedOut"
    assert "took longer than 2 s at stage screen" in hang.message
    assert not list(tmp_path.glob(".*.partial-*"))


def test_the_first_request_lets_slides_be_given_up_the_second_does_not_wait(tmp_path: Path) -> None:
    with LocalExecutor(job(tmp_path), ["cpu"], fake_worker) as executor:
        for urgency, name in ((1, "slow"), (2, "hang")):
            stop = Stop()
            given_up: list[str] = []
            began = time.monotonic()
            for event in executor.screen(tasks(name, "never"), stop):
                if isinstance(event, Started):
                    began = time.monotonic()
                    for _ in range(urgency):
                        stop.ask()
                assert not isinstance(event, Finished)
                given_up += [event.task.name] if isinstance(event, GivenUp) else []
            assert given_up == [name]
            assert time.monotonic() - began < 8
