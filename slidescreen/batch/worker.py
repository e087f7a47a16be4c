"""One slide in a process of its own, that may die: the process's side.

A worker loads the model once and takes one slide after the other from its pipe. It leaves signals to its parent, stops at the
next cell when told to, and ends when the parent's end of the pipe is closed, however the parent died.
"""

from __future__ import annotations

import ctypes
import dataclasses
import faulthandler
import gc
import logging
import os
import queue
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, TextIO

import cv2

from slidescreen.batch.events import Job, SlideTask
from slidescreen.batch.ledger import LOGS
from slidescreen.batch.output import Output, open_output, read_json
from slidescreen.batch.plan import slide_settings
from slidescreen.batch.slides import RunOptions, SlideDone, SlideFailure, attempt, failure
from slidescreen.classify import Classifier, load_classifier
from slidescreen.errors import SlidescreenError
from slidescreen.overlap import grant_cores
from slidescreen.slide.known_answers import require_decoders
from slidescreen.store import SUMMARY
from slidescreen.stored import same_request

log = logging.getLogger("slidescreen")

TELL_S: Final = 0.5
"""Progress is told at most this often."""
M_ARENA_MAX: Final = -8
"""Of glibc's malloc.h."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded; `device` is where it runs."""

    device: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The worker cannot work: `message` of a SlidescreenError."""

    message: str


@dataclass(frozen=True, slots=True)
class Step:
    """The slide got on; see `events.Moved`."""

    stage: str
    tiles: int = 0
    total: int = 0
    cells: int = 0


@dataclass(frozen=True, slots=True)
class Line:
    """A line for the log."""

    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """The slide is finished; None: it was given up on request."""

    result: SlideDone | SlideFailure | None
    seconds: float


@dataclass(frozen=True, slots=True)
class HaltSlide:
    """Sent to the worker: give up the slide at the next cell."""


def work(pipe: Connection, job: Job) -> None:
    """Main of the worker process."""
    for blow in (signal.SIGINT, signal.SIGTERM):
        signal.signal(blow, signal.SIG_IGN)
    _be_modest(job.threads)
    mouth = _Mouth(pipe)
    tasks: queue.Queue[SlideTask | None] = queue.Queue()
    halted = threading.Event()
    threading.Thread(target=_listen, args=(pipe, tasks, halted), daemon=True).start()
    _log_to(mouth)
    try:
        require_decoders()
        classifier = load_classifier(job.model, job.settings.classify, job.threads)
    except SlidescreenError as error:
        mouth.say(Broken(str(error)))
        return
    gc.freeze()  # what is loaded stays: it need not be searched for garbage again and again
    mouth.say(Ready(classifier.device))
    while (task := tasks.get()) is not None:
        began = time.monotonic()
        try:
            result: SlideDone | SlideFailure | None = screen_task(job, task, classifier, _Teller(mouth, halted))
        except KeyboardInterrupt:
            result = None
        mouth.say(Outcome(result, time.monotonic() - began))


def screen_task(job: Job, task: SlideTask, classifier: Classifier, teller: Teller) -> SlideDone | SlideFailure:
    """Screen one slide and put its result in its place; its log goes to `logs/`."""
    output = open_output(job.out)
    with _slide_log(output, task.name) as file:
        try:
            outcome = _screen(job, task, classifier, output, teller)
        except Exception as error:  # storage behind a URL has errors of its own
            outcome = dataclasses.replace(failure(task.path, error, "write"), transient=True)
        if isinstance(outcome, SlideFailure):
            file.write(f"FAILED at {outcome.stage}: {outcome}\n{outcome.trace}\n")
    return outcome


def _screen(job: Job, task: SlideTask, classifier: Classifier, output: Output, teller: Teller) -> SlideDone | SlideFailure:
    settings = slide_settings(job.settings, task.aoi)
    if output.folder is None and not job.overwrite:  # another worker may have finished it before it was lost
        found = read_json(output, f"{task.name}/{SUMMARY}")
        model, wanted = classifier.card.identity, settings.result_settings()
        request = {"fingerprint": task.fingerprint, "wanted_scale": task.um_per_px, "model": model, "settings": wanted}
        if found is not None and same_request(found, **request):  # type: ignore[arg-type]
            return SlideDone(task.path, Path(task.name), True, None, where=output.where(task.name))
    with output.scratch() as scratch:
        options = RunOptions(scratch, task.um_per_px, job.patches, job.overwrite)
        outcome = attempt(task.path, classifier, settings, options, teller.progress, teller.at)
        if isinstance(outcome, SlideDone) and not outcome.skipped:
            where = output.publish(outcome.folder)
            return outcome if output.folder else dataclasses.replace(outcome, where=where)
        return outcome


class Teller:
    """Hears how a slide gets on."""

    def at(self, stage: str) -> None:
        """A stage begins."""

    def progress(self, tiles: int, total: int, cells: int) -> None:
        """See `pipeline.Progress`."""


class _Teller(Teller):
    """Passes it on to the parent, not too often, and gives the slide up when halted."""

    def __init__(self, mouth: _Mouth, halted: threading.Event) -> None:
        self._mouth, self._halted = mouth, halted
        self._told = 0.0

    def at(self, stage: str) -> None:
        self._look()
        self._mouth.say(Step(stage))

    def progress(self, tiles: int, total: int, cells: int) -> None:
        self._look()
        if time.monotonic() - self._told > TELL_S:
            self._told = time.monotonic()
            self._mouth.say(Step("screen", tiles, total, cells))

    def _look(self) -> None:
        if self._halted.is_set():
            raise KeyboardInterrupt


class _Mouth:
    """The worker's end of the pipe; several threads speak."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def say(self, message: Ready | Broken | Step | Line | Outcome) -> None:
        with self._lock:
            try:
                self._pipe.send(message)
            except OSError:
                os._exit(1)  # the parent has gone


class _PipeHandler(logging.Handler):
    def __init__(self, mouth: _Mouth) -> None:
        super().__init__()
        self._mouth = mouth

    def emit(self, record: logging.LogRecord) -> None:
        self._mouth.say(Line(record.levelno, record.getMessage()))


def _listen(pipe: Connection, tasks: queue.Queue[SlideTask | None], halted: threading.Event) -> None:
    """Hear the parent. When it has gone, whatever the reason, end at once: nobody waits for the slide any more."""
    while True:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            os._exit(1)
        if isinstance(message, HaltSlide):
            halted.set()
        else:
            tasks.put(message)


def _log_to(mouth: _Mouth) -> None:
    log.handlers = [_PipeHandler(mouth)]
    log.setLevel(logging.INFO)
    log.propagate = False
    for library in ("tifffile", "tiffslide", "py.warnings"):
        logging.getLogger(library).handlers = [logging.NullHandler()]
        logging.getLogger(library).propagate = False
    logging.captureWarnings(True)


@contextmanager
def _slide_log(output: Output, name: str) -> Iterator[TextIO]:
    """A file that takes what is logged of one slide and, should native code crash, where it was. Removed when empty."""
    folder = None if output.folder is None else output.folder / LOGS
    with tempfile.TemporaryDirectory(prefix="slidescreen-") as aside:
        path = _log_path(folder, Path(aside), name)
        with path.open("w", encoding="utf-8", errors="replace") as file:
            handler = logging.StreamHandler(file)
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            log.addHandler(handler)
            faulthandler.enable(file=file, all_threads=True)
            try:
                yield file
            finally:
                faulthandler.disable()
                log.removeHandler(handler)
        if folder is None and path.stat().st_size:
            output.write(f"{LOGS}/{name}.log", path.read_bytes())
        if not path.stat().st_size:
            path.unlink()


def _log_path(folder: Path | None, aside: Path, name: str) -> Path:
    """In the folder of logs; where that cannot be made, aside: a log is no reason to fail."""
    if folder is None:
        return aside / f"{name}.log"
    try:
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.log").touch()
    except OSError:
        return aside / f"{name}.log"
    return folder / f"{name}.log"


def _be_modest(threads: int) -> None:
    """Use so many threads and no more, and let glibc keep two heaps in place of eight per core: each thread's freed image
    buffers would otherwise stay in a heap of its own. The latter does nothing where the C library has no mallopt."""
    import torch

    grant_cores(threads)
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 2)
