"""What a batch prints as it goes: bars on a terminal, lines elsewhere, one line per scan."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from slidescreen.cli.app import stopped
from slidescreen.errors import SlidescreenError

if TYPE_CHECKING:
    from slidescreen.batch import SlideDone, SlideFailure
    from slidescreen.pipeline import Progress

log = logging.getLogger("slidescreen")


def print_line(line: str) -> None:
    """One line on standard output. When nobody reads it any more the run goes on without."""
    try:
        typer.echo("".join(c if c.isprintable() else " " for c in line))
        sys.stdout.flush()
    except OSError:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # until the process ends


def print_done(done: SlideDone) -> None:
    """One line on standard output for a scan that has a result; its warnings go to the log."""
    report = done.folder / "report.html"
    d = done.differential
    if d is None:
        print_line(f"{done.path}: already current -> {report}")
        return

    def said(name: str, fraction: Any) -> str:
        if fraction.fraction is None:
            return f"{name} -"
        low, high = fraction.ci95
        return f"{name} {100 * fraction.fraction:.1f} % ({100 * low:.1f}-{100 * high:.1f})"

    print_line(f"{done.path}: {d.leukocytes} leukocytes, {said('blasts', d.blast)}, {said('atypical', d.atypical)} -> {report}")
    for warning in done.warnings:
        log.warning("%s: %s", done.path, warning)


def print_failure(failure: SlideFailure, verbose: bool) -> None:
    """One line in the log for a scan without a result; with its traceback when `verbose`."""
    if isinstance(failure.error, SlidescreenError):
        log.error("FAILED %s", failure.error)
    else:
        what = " ".join(str(failure.error).split())
        log.error(
            "FAILED %s: unforeseen %s (%s); run again with -v and report it",
            failure.path,
            type(failure.error).__name__,
            what,
        )
    if verbose:
        log.error("%s", "".join(traceback.format_exception(failure.error)).rstrip(), extra={"lines": True})


class Bars:
    """One progress bar on a terminal; elsewhere a log line a minute."""

    def __init__(self, plain: bool) -> None:
        self._bar: Any = None
        self._task: Any = None
        if not plain and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = ("{task.description}", BarColumn(), TextColumn("{task.fields[cells]} cells"), TimeElapsedColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)

    def __enter__(self) -> Bars:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, path: Path) -> Progress:
        log.info("%s: screening", path)
        if self._bar is not None:
            self._task = self._bar.add_task(path.name.replace("[", "\\["), total=None, cells=0)
        told = time.monotonic()

        def report(tiles: int, total: int, cells: int) -> None:
            nonlocal told
            if stopped.is_set():
                raise KeyboardInterrupt
            if self._bar is not None:
                self._bar.update(self._task, completed=tiles, total=total, cells=cells)
            elif time.monotonic() - told > 60:
                told = time.monotonic()
                log.info("%s: %d of %d tiles searched, %d cells done", path, tiles, total, cells)

        return report

    def finish(self) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
