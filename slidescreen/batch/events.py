"""What happens in a batch, told by an executor as it happens, and how it is asked to stop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slidescreen.batch.slides import SlideDone, SlideFailure
from slidescreen.config import Settings


@dataclass(frozen=True, slots=True)
class Job:
    """What all slides of a batch have in common. `out`: folder or URL of results. `threads`: per worker. `timeout_s`: longest
    time for one slide, or None."""

    out: str
    model: Path
    settings: Settings
    patches: bool = True
    overwrite: bool = False
    threads: int = 1
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class SlideTask:
    """One slide to screen. `name`: that of its result, its log and its entry in the ledger. `key`: hash of everything the
    result depends on."""

    path: Path
    name: str
    fingerprint: str
    key: str
    um_per_px: float | Literal["auto"] | None = None
    aoi: str = ""


@dataclass(frozen=True, slots=True)
class SlideSkipped:
    """A slide with nothing to do: `name` is the result that stands for it, `where` it is, `reason` why."""

    path: Path
    name: str
    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class Started:
    """A worker took the slide. `worker`: its device, and its host where there are several."""

    task: SlideTask
    worker: str


@dataclass(frozen=True, slots=True)
class Moved:
    """The slide got on: its stage, tiles searched of all, cells done."""

    task: SlideTask
    stage: str
    tiles: int = 0
    total: int = 0
    cells: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """The slide has a result or a failure. `seconds` on the worker."""

    task: SlideTask
    outcome: SlideDone | SlideFailure
    worker: str
    seconds: float


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The slide was stopped because the batch was; nothing of it is left."""

    task: SlideTask


@dataclass(frozen=True, slots=True)
class Said:
    """A line for the log, of a worker."""

    level: int
    text: str


Event = Started | Moved | Finished | GivenUp | Said


class Stop:
    """How urgently the batch is to stop: 0 not, 1 as soon as nothing is left half, 2 at once."""

    def __init__(self) -> None:
        self.urgency = 0

    def ask(self) -> None:
        """Stop, or, when already asked to, stop at once."""
        self.urgency = min(2, self.urgency + 1)
