"""What a batch prints as it goes: a bar for the batch and a line per running slide on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

if TYPE_CHECKING:
    from slidescreen.batch import SlideDone, SlideFailure
    from slidescreen.batch.events import Event, Finished, Moved
    from slidescreen.batch.plan import Plan

log = logging.getLogger("slidescreen")

QUIET_S: Final = 60.0
"""Elsewhere a running slide is told of this often."""


def print_line(line: str) -> None:
    """One line on standard output. When nobody reads it any more the run goes on without."""
    try:
        typer.echo("".join(c if c.isprintable() else " " for c in line))
        sys.stdout.flush()
    except OSError:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # until the process ends


def print_done(done: SlideDone) -> None:
    """One line on standard output for a scan that has a result; its warnings go to the log."""
    report = f"{done.where or done.folder}/report.html"
    d = done.differential
    if d is None:
        print_line(f"{done.path}: already current -> {report}")
        return

    def said(name: str, fraction: Any) -> str:
        if fraction.fraction is None:
            return f"{name} -"
        low, high = fraction.ci95
        return f"{name} {100 * fraction.fraction:.1f} % ({100 * low:.1f}-{100 * high:.1f})"

    counted = f"{d.leukocytes} leukocyte" + ("" if d.leukocytes == 1 else "s")
    print_line(f"{done.path}: {counted}, {said('blasts', d.blast)}, {said('atypical', d.atypical)} -> {report}")
    for warning in done.warnings:
        log.warning("%s: %s", done.path, warning)


def print_failure(failure: SlideFailure, verbose: bool) -> None:
    """One line in the log for a scan without a result; with its traceback when `verbose`."""
    log.error("FAILED %s", failure)
    if verbose and failure.trace:
        log.error("%s", failure.trace, extra={"lines": True})


class Pace:
    """How fast a batch goes, by the clock that cannot be set."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.finished = 0
        self._began = time.monotonic()

    def left(self) -> str:
        """ "2 h 05 min left", by the slides finished so far; "" before the first."""
        if not self.finished or self.finished >= self.total:
            return ""
        seconds = (time.monotonic() - self._began) / self.finished * (self.total - self.finished)
        minutes = round(seconds / 60)
        if minutes < 1:
            return f"{seconds:.0f} s left"
        return f"{minutes // 60} h {minutes % 60:02d} min left" if minutes >= 60 else f"{minutes} min left"


class View:
    """Shows events. Context: the terminal is given back when it is left."""

    def __init__(self, plan: Plan, *, plain: bool, verbose: bool) -> None:
        from slidescreen.batch import SlideFailure
        from slidescreen.batch.events import SlideSkipped

        self._verbose = verbose
        self._pace = Pace(len(plan.tasks))
        self._failed = 0
        self._bars: _Bars | None = None if plain or not sys.stderr.isatty() else _Bars(len(plan.tasks))
        self._told: dict[str, float] = {}
        for planned in plan.slides:
            if isinstance(planned.action, SlideSkipped) and planned.action.reason == "current":
                print_line(f"{planned.input.path}: already current -> {planned.action.where}/report.html")
            elif isinstance(planned.action, SlideFailure):
                print_failure(planned.action, verbose)

    def __enter__(self) -> View:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def show(self, event: Event) -> None:
        """Print what happened."""
        from slidescreen.batch.events import Finished, GivenUp, Moved, Said, Started

        if isinstance(event, Said):
            log.log(event.level, "%s", event.text)
        elif isinstance(event, Started):
            log.info("%s: screening (%s)", event.task.path, event.worker)
            if self._bars:
                self._bars.add(event.task.name)
        elif isinstance(event, Moved):
            self._moved(event)
        elif isinstance(event, Finished):
            self._finished(event)
        if self._bars and isinstance(event, Finished | GivenUp):
            self._bars.remove(event.task.name)

    def _moved(self, event: Moved) -> None:
        name = event.task.name
        if self._bars:
            self._bars.move(event)
        elif time.monotonic() - self._told.setdefault(name, time.monotonic()) > QUIET_S:
            self._told[name] = time.monotonic()
            log.info("%s: %d of %d tiles searched, %d cells done", event.task.path, event.tiles, event.total, event.cells)

    def _finished(self, event: Finished) -> None:
        from slidescreen.batch import SlideFailure

        self._told.pop(event.task.name, None)
        self._pace.finished += 1
        if isinstance(event.outcome, SlideFailure):
            self._failed += 1
            print_failure(event.outcome, self._verbose)
        else:
            print_done(event.outcome)
        failed = f", {self._failed} failed" if self._failed else ""
        left = self._pace.left()
        if self._bars:
            self._bars.advance(f"{self._failed} failed" if self._failed else "", left)
        elif self._pace.total > 1:
            log.info("%d of %d slides%s%s", self._pace.finished, self._pace.total, failed, f", {left}" if left else "")


class _Bars:
    """The bars on a terminal: the batch, then every running slide."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            "{task.description}",
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
        )
        to_terminal = sys.stdout.isatty()  # lines for a file or a pipe must not go to the terminal
        self.progress = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=to_terminal)
        self._all = self.progress.add_task("slides", total=total, said="")
        self._slides: dict[str, Any] = {}

    def start(self) -> None:
        """Show the bars; log lines go above them."""
        before = sys.stderr
        self.progress.start()
        self._handlers = [h for h in log.handlers if isinstance(h, logging.StreamHandler) and h.stream is before]
        for handler in self._handlers:
            handler.setStream(sys.stderr)

    def stop(self) -> None:
        """Give the terminal back."""
        self.progress.stop()
        for handler in self._handlers:
            handler.setStream(sys.stderr)

    def add(self, name: str) -> None:
        self._slides[name] = self.progress.add_task(f"  {name}".replace("[", "\\["), total=None, said="open")

    def move(self, event: Moved) -> None:
        if event.task.name in self._slides:
            said = f"{event.cells} cells" if event.stage == "screen" else event.stage
            self.progress.update(self._slides[event.task.name], completed=event.tiles, total=event.total or None, said=said)

    def remove(self, name: str) -> None:
        if name in self._slides:
            self.progress.remove_task(self._slides.pop(name))

    def advance(self, failed: str, left: str) -> None:
        self.progress.update(self._all, advance=1, said=", ".join(filter(None, (failed, left))))
