"""How a training goes, on a terminal as a bar, elsewhere as a log line a minute."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Final

import typer

from slidescreen.cli.app import log, stopped

if TYPE_CHECKING:
    from slidescreen.training.classifier.fit import Step

TELL_EVERY_S: Final = 60.0


class TrainingBar:
    """`tell` takes fold and step; `print_line` writes above the bar."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._tasks: dict[int, Any] = {}
        self._told = 0.0
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))

    def __enter__(self) -> TrainingBar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def tell(self, fold: int, step: Step) -> None:
        """Show where the training stands. Raises KeyboardInterrupt when it is asked to stop."""
        if stopped.is_set():
            raise KeyboardInterrupt
        said = f"epoch {step.epoch}, loss {step.loss:.3f}, {step.images_per_s:.0f} images/s"
        if self._bar is not None:
            if fold not in self._tasks:
                self._tasks[fold] = self._bar.add_task(f"fold {fold}", total=step.total, said=said)
            self._bar.update(self._tasks[fold], completed=step.step, said=said)
        elif time.monotonic() - self._told > TELL_EVERY_S:
            self._told = time.monotonic()
            log.info("fold %d, step %d of %d: %s", fold, step.step, step.total, said)

    def print_line(self, line: str) -> None:
        """One line on standard output."""
        if self._bar is not None:
            self._bar.stop()
        typer.echo(line)
        if self._bar is not None:
            self._bar.start()
