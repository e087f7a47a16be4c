"""How a training goes, as JSON lines and for TensorBoard."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from slidescreen.atomic import write_text

if TYPE_CHECKING:
    from slidescreen.training.classifier.fit import Step

log = logging.getLogger(__name__)

METRICS: Final = "metrics.jsonl"
EVENTS: Final = "tensorboard"


class MetricsLog:
    """Appends to `metrics.jsonl` in `folder`, a line at once, and to `tensorboard/` where tensorboardX is installed.

    What an earlier run wrote after `step`, where this one goes on, is dropped.
    """

    def __init__(self, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / METRICS
        _drop_after(path, step)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._events = _events(folder / EVENTS, step)

    def step(self, told: Step, rate: float) -> None:
        """After some steps."""
        line = {
            "step": told.step,
            "epoch": told.epoch,
            "loss": told.loss,
            "learning_rate": rate,
            "images_per_s": round(told.images_per_s, 1),
            "waiting": round(told.waiting, 3),
        }
        self._write(line)
        self._scalars(told.step, loss=told.loss, learning_rate=rate, images_per_s=told.images_per_s, waiting=told.waiting)

    def epoch(self, epoch: int, step: int, loss: float) -> None:
        """At the end of an epoch."""
        self._write({"step": step, "finished_epoch": epoch, "epoch_loss": loss})
        self._scalars(step, epoch_loss=loss)

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")

    def _scalars(self, step: int, **values: float) -> None:
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()


def _drop_after(path: Path, step: int) -> None:
    if not path.is_file():
        return
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    write_text(path, "".join(f"{line}\n" for line in kept))


def _events(folder: Path, step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        log.info("no TensorBoard log; pip install 'slidescreen[tensorboard]' brings it")
        return None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
