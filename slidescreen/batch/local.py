"""Workers on this machine: one process per device or slot, each with a pipe of its own.

Nothing is shared between workers that one of them could hold while it dies, so a slide that kills its worker, or has to be
killed, costs that slide only.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Final

from slidescreen.batch.events import Event, Finished, GivenUp, Job, Moved, Said, SlideTask, Started, Stop
from slidescreen.batch.ledger import LOGS
from slidescreen.batch.output import open_output
from slidescreen.batch.slides import SlideFailure
from slidescreen.batch.worker import Broken, HaltSlide, Line, Outcome, Ready, Step, work
from slidescreen.errors import ModelError, SlidescreenError

POLL_S: Final = 0.2
GRACE_S: Final = 10.0
"""How long a worker may take to give up its slide before it is killed; Slurm and Kubernetes wait 30 s."""
DUMP_S: Final = 2.0
"""How long a hanging worker may take to write down where it hangs."""
MAX_DEAD_STARTS: Final = 3
THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
CAUSES: Final = {
    "SIGKILL": "out of memory, or killed by the system or by somebody",
    "SIGSEGV": "native code crashed, most likely a decoder on a damaged file",
    "SIGBUS": "native code crashed, most likely because the file changed while it was read",
    "SIGABRT": "native code gave up",
}


Main = Callable[[Connection, Job], None]


class _Worker:
    """The parent's side of one worker."""

    def __init__(self, job: Job, device: str, main: Main) -> None:
        self.device = device
        self.job = dataclasses.replace(job, settings=_on(job, device))
        context = multiprocessing.get_context("spawn")
        self.pipe, end = context.Pipe()
        self.process: BaseProcess = context.Process(target=main, args=(end, self.job), daemon=True)
        with _environment(job.threads):
            self.process.start()
        end.close()
        self.ready = False
        self.task: SlideTask | None = None
        self.stage = ""
        self.began = 0.0

    def give(self, task: SlideTask) -> None:
        self.task, self.stage, self.began = task, "open", time.monotonic()
        self.pipe.send(task)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def dismiss(self) -> None:
        """Let an idle worker end."""
        with suppress(OSError):  # it may have ended already
            self.pipe.send(None)
        self.process.join(GRACE_S)
        self.kill()


def _on(job: Job, device: str) -> Any:
    return dataclasses.replace(job.settings, classify=dataclasses.replace(job.settings.classify, device=device))


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """The numeric libraries of a new process read these when they are loaded."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update({name: str(threads) for name in THREAD_VARIABLES})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


class LocalExecutor:
    """One worker per entry of `devices` ("cpu", "cpu" for two on the CPU). Workers stay between calls of `screen`, with their
    model, until `close`. `main`: of a worker process; it must be importable by name."""

    def __init__(self, job: Job, devices: Sequence[str], main: Main = work) -> None:
        self._main = main
        self._job = job
        self._devices = list(devices)
        self._workers: list[_Worker] = []
        self._dead_starts = 0

    def screen(self, tasks: Sequence[SlideTask], stop: Stop) -> Iterator[Event]:
        """Screen all tasks; every one ends in Finished or GivenUp, unless the batch is stopped before it was started.

        Raises ModelError when a worker cannot load the model, SlidescreenError when workers die before they have.
        """
        waiting = deque(tasks)
        halted_at: float | None = None
        while waiting or any(w.task for w in self._workers):
            if stop.urgency:
                waiting.clear()
                halted_at = self._halt(halted_at)
                if stop.urgency > 1 or time.monotonic() - halted_at > GRACE_S:
                    yield from self._give_up()
                    continue
            self._employ(len(waiting))
            for worker in [w for w in self._workers if w.ready and not w.task and waiting]:
                yield from self._begin(worker, waiting.popleft())
            yield from self._hear()
            yield from self._overdue()

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.kill() if worker.task or not worker.ready else worker.dismiss()
        self._workers = []

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _employ(self, waiting: int) -> None:
        """Start workers where there is work for them."""
        idle = sum(w.task is None for w in self._workers)
        free = list(self._devices)
        for worker in self._workers:
            free.remove(worker.device)
        for device in free[: max(0, waiting - idle)]:
            self._workers.append(_Worker(self._job, device, self._main))

    def _begin(self, worker: _Worker, task: SlideTask) -> Iterator[Event]:
        with suppress(OSError):  # it may have died while idle: `_hear` finds the pipe closed
            worker.give(task)
        yield Started(task, worker.device)

    def _hear(self) -> Iterator[Event]:
        pipes: dict[Any, _Worker] = {w.pipe: w for w in self._workers}
        if not pipes:
            return
        for pipe in wait(list(pipes), POLL_S):
            worker = pipes[pipe]
            try:
                message = _receive(worker.pipe)
            except (EOFError, OSError):
                yield from self._died(worker)
                continue
            yield from self._understood(worker, message)

    def _understood(self, worker: _Worker, message: object) -> Iterator[Event]:
        task = worker.task
        if isinstance(message, Ready):
            worker.ready, self._dead_starts = True, 0
        elif isinstance(message, Broken):
            raise ModelError(message.message)
        elif isinstance(message, Line):
            yield Said(message.level, message.text)
        elif isinstance(message, Step) and task:
            worker.stage = message.stage
            yield Moved(task, message.stage, message.tiles, message.total, message.cells)
        elif isinstance(message, Outcome) and task:
            worker.task = None
            outcome = message.result
            yield GivenUp(task) if outcome is None else Finished(task, outcome, worker.device, message.seconds)

    def _died(self, worker: _Worker) -> Iterator[Event]:
        self._workers.remove(worker)
        worker.process.join(GRACE_S)
        code = worker.process.exitcode
        worker.kill()
        if worker.task:
            yield self._failed(worker, "WorkerDied", f"its worker {_cause(code)}", "look at it with slidescreen info")
            return
        self._dead_starts += not worker.ready
        if self._dead_starts >= MAX_DEAD_STARTS:
            said = f"{self._dead_starts} workers ended before they had loaded the model, the last {_cause(code)}"
            raise SlidescreenError(f"{said}; run slidescreen doctor")

    def _overdue(self) -> Iterator[Event]:
        limit = self._job.timeout_s
        for worker in [w for w in self._workers if w.task and limit is not None and w.seconds > limit]:
            self._workers.remove(worker)
            os.kill(worker.process.pid or 0, signal.SIGABRT)  # its faulthandler writes down where it hangs
            worker.process.join(DUMP_S)
            worker.kill()
            said = f"took longer than {limit:g} s at stage {worker.stage}"
            yield self._failed(worker, "TimedOut", said, "raise --timeout-per-slide, or look at it with slidescreen info")

    def _failed(self, worker: _Worker, kind: str, said: str, step: str) -> Finished:
        task = worker.task
        assert task is not None
        worker.task = None
        output = open_output(self._job.out)
        _forget_half(output, task)
        log = output.read(f"{LOGS}/{task.name}.log") or b""
        failure = SlideFailure(
            task.path, worker.stage, kind, f"{task.path}: {said}", step, log.decode("utf-8", "replace").strip()
        )
        return Finished(task, failure, worker.device, worker.seconds)

    def _halt(self, halted_at: float | None) -> float:
        """Tell busy workers to give up, once."""
        if halted_at is not None:
            return halted_at
        for worker in self._workers:
            try:
                worker.pipe.send(HaltSlide())
            except OSError:
                continue  # it has died: `_hear` tells
        return time.monotonic()

    def _give_up(self) -> Iterator[Event]:
        for worker in self._workers:
            worker.kill()
        gone = [w.task for w in self._workers if w.task]
        self._workers = []
        for task in gone:
            _forget_half(open_output(self._job.out), task)
            yield GivenUp(task)


def _receive(pipe: Connection) -> object:
    return pipe.recv()


def _forget_half(output: Any, task: SlideTask) -> None:
    try:
        output.sweep({task.name})
    except OSError:
        return  # the folder has gone, and the half result with it


def _cause(code: int | None) -> str:
    """An exit code in words."""
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    cause = CAUSES.get(name)
    return f"was ended by {name} ({cause})" if cause else f"was ended by {name}"
