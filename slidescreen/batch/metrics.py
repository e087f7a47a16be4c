"""The state of a batch as a Prometheus textfile, for the node exporter's textfile collector."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, write_to_textfile

from slidescreen.batch.events import Event, Finished, GivenUp, SlideSkipped, SlideTask, Started
from slidescreen.batch.plan import Plan
from slidescreen.batch.slides import SlideDone, SlideFailure
from slidescreen.errors import UsageError

EVERY_S: Final = 10.0


class Metrics:
    """Counts and seconds per stage. The file is replaced whole, at most every 10 s and at the end."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self._path = path
        self._registry = CollectorRegistry()
        slides = Gauge("slidescreen_slides", "Slides of the batch by state", ["state"], registry=self._registry)
        self._state = {s: slides.labels(s) for s in ("waiting", "running", "done", "skipped", "failed")}
        self._state["waiting"].set(len(plan.tasks))
        self._state["skipped"].set(plan.count(SlideSkipped))
        self._state["failed"].set(plan.count(SlideFailure))
        self._stages = Counter(
            "slidescreen_stage_seconds", "Busy seconds per stage; stages overlap", ["stage"], registry=self._registry
        )
        self._seconds = Counter("slidescreen_slide_seconds", "Seconds on workers", registry=self._registry)
        Gauge("slidescreen_slides_listed", "Slides of the batch", registry=self._registry).set(len(plan.slides))
        started = Gauge("slidescreen_start_time_seconds", "When the batch began, Unix time", registry=self._registry)
        started.set_to_current_time()
        self._updated = Gauge(
            "slidescreen_last_update_seconds", "When this file was written, Unix time", registry=self._registry
        )
        self._ended = Gauge("slidescreen_ended", "1 when the batch has ended", registry=self._registry)
        self._running: set[SlideTask] = set()
        self._written = 0.0
        self.write()

    def see(self, event: Event) -> None:
        """Count an event."""
        if isinstance(event, Started):
            self._running.add(event.task)
            self._state["waiting"].dec()
        elif isinstance(event, Finished | GivenUp):
            self._running.discard(event.task)
        if isinstance(event, Finished):
            self._finished(event)
        self._state["running"].set(len(self._running))
        if time.monotonic() - self._written > EVERY_S:
            self.write()

    def _finished(self, event: Finished) -> None:
        done = isinstance(event.outcome, SlideDone)
        self._state["done" if done else "failed"].inc()
        self._seconds.inc(event.seconds)
        if isinstance(event.outcome, SlideDone):
            for stage, seconds in event.outcome.timings_s.items():
                self._stages.labels(stage).inc(max(0.0, seconds))

    def end(self) -> None:
        """Write the last state."""
        self._ended.set(1)
        self.write()

    def write(self) -> None:
        """Write the file. Raises UsageError when it cannot be written."""
        self._updated.set_to_current_time()
        self._written = time.monotonic()
        try:
            write_to_textfile(str(self._path), self._registry)
        except OSError as error:
            raise UsageError(f"--metrics {self._path}: cannot be written ({error.strerror}); check the folder") from error
