"""Patches -> batches; batches, Classifier -> Iterator[Prediction]."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slidescreen.engines import ClassifySettings, Engine, caution, choose_device, choose_devices, open_engine
from slidescreen.model import find_model, load_card, load_rejection
from slidescreen.records import PATCH_PX, Cell, Patch, Prediction

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Batch",
    "Classifier",
    "ClassifySettings",
    "First",
    "Judgement",
    "choose_device",
    "choose_devices",
    "classify",
    "gather",
    "load_classifier",
]

HELD_PER_BATCH: Final = 4
MATURE: Final = frozenset({"NGS", "NGB", "LYT", "MON", "EOS", "BAS"})
"""Classes of mature leukocytes."""


class Judgement(NamedTuple):
    """Of n patches. `probabilities` (n, 15) float32, rows sum to 1, columns in the order of the card's classes. `outlier` and
    `agreement` (n,) float32 or None, see `records.Prediction`; NaN where a patch has none."""

    probabilities: NDArray[np.float32]
    outlier: NDArray[np.float32] | None = None
    agreement: NDArray[np.float32] | None = None

    def rows(self) -> Iterator[tuple[NDArray[np.float32], float | None, float | None]]:
        """Probabilities, outlier score and agreement of each patch."""
        for i, p in enumerate(self.probabilities):
            outlier, agreement = (None if each is None or np.isnan(each[i]) else float(each[i]) for each in self[1:])
            yield p, outlier, agreement


@dataclass(frozen=True, slots=True, eq=False)
class First:
    """A cheaper classifier that is asked first. What it calls a mature class with a probability of `threshold` or more, and no
    outlier, keeps its answer."""

    classifier: Classifier
    threshold: float

    def settles(self, judgement: Judgement) -> NDArray[np.bool_]:
        """(n,): whether a patch keeps the answer."""
        mature = [i for i, code in enumerate(self.classifier.card.classes) if code in MATURE]
        sure: NDArray[np.bool_] = judgement.probabilities[:, mature].max(1, initial=0.0) >= self.threshold
        return sure if judgement.outlier is None else sure & (judgement.outlier <= 0)


class Classifier:
    """A model folder and the engine that runs its network: types patches. With `tta` 8 each is looked at in four turns and
    their mirror images: probabilities and outlier scores are averaged.
    `first` is asked before it."""

    def __init__(self, folder: Path, engine: Engine, tta: int = 1, first: First | None = None) -> None:
        self.card = load_card(folder)
        self.engine = engine
        self.tta = tta
        self.first = first
        self._folder = folder
        self._rejection = load_rejection(folder, self.card)

    @property
    def device(self) -> str:
        """The torch device nearest to the engine."""
        return self.engine.device.split(",")[0]

    @property
    def told(self) -> str:
        """Where and with what it types: "cpu, torch float32"."""
        before = f", after {self.first.classifier.card.name}" if self.first else ""
        return f"{self.engine.device}, {self.engine.name}{before}"

    @property
    def caution(self) -> str:
        """What a reader must know of how its answers, and those of the one before it, were computed; empty for nothing."""
        said = caution(self.card.architecture, self.engine.name)
        return said or (self.first.classifier.caution if self.first else "")

    @property
    def batch_size(self) -> int:
        """As many patches as are best given at once."""
        return self.engine.batch_size

    @cached_property
    def network(self) -> nn.Module:
        """The torch network, on `device`, for `explain.Differentiable`: in bfloat16 on a CPU where the engine computes in less
        than float32, else in float32. Loaded when first asked for."""
        from slidescreen.engines.network import LogitsInBfloat16
        from slidescreen.model import load_network

        network = load_network(self._folder, self.card).requires_grad_(False)
        if self.device == "cpu" and "float32" not in self.engine.name:
            return LogitsInBfloat16(network)
        return network.to(self.device)

    def probabilities(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, 400, 400, 3) uint8 RGB -> (n, 15) float32, rows sum to 1, columns in the order of `card.classes`."""
        return self.judge(patches).probabilities

    def judge(self, patches: NDArray[np.uint8]) -> Judgement:
        """(n, 400, 400, 3) uint8 RGB -> calibrated probabilities, and what speaks against believing them."""
        if self.first is None:
            return self._judge(patches)
        early = self.first.classifier.judge(patches)
        settled = self.first.settles(early)
        order = [self.first.classifier.card.classes.index(code) for code in self.card.classes]
        found = Judgement(early.probabilities[:, order], early.outlier, early.agreement)
        return found if settled.all() else _mixed(found, settled, self._judge(patches[~settled]))

    def _judge(self, patches: NDArray[np.uint8]) -> Judgement:
        looks = [self._look(turned(patches, i)) for i in range(self.tta)]
        probabilities = _mean([p for p, _ in looks])
        outlier = None if self._rejection is None else _mean([score for _, score in looks])
        if self.tta == 1:
            return Judgement(probabilities, outlier)
        best = probabilities.argmax(1)
        return Judgement(probabilities, outlier, _mean([p.argmax(1) == best for p, _ in looks]))

    def _look(self, patches: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(n, 15) probabilities and (n,) outlier scores, empty without rejection, as the patches lie."""
        logits, features = self.engine.run(patches)
        p = softmax(logits / np.float32(self.card.temperature))
        if self._rejection is None or self.card.rejection is None:
            return p, np.zeros(0, np.float32)
        return p, self._rejection.scores(features) - np.float32(self.card.rejection.threshold)


def _mixed(early: Judgement, settled: NDArray[np.bool_], late: Judgement) -> Judgement:
    """The rows of `early` that are settled; the others are those of `late`, one after the other."""
    parts: list[NDArray[np.float32] | None] = []
    for before, after in zip(early, late, strict=True):
        if before is None and after is None:
            parts.append(None)
            continue
        shape = (len(settled), *early.probabilities.shape[1:]) if len(parts) == 0 else (len(settled),)
        mixed = np.full(shape, np.nan, np.float32)
        if before is not None:
            mixed[settled] = before[settled]
        if after is not None:
            mixed[~settled] = after
        parts.append(mixed)
    return Judgement(*parts)  # type: ignore[arg-type]  # probabilities are always there


def _mean(looks: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    return np.asarray(np.mean(looks, axis=0), np.float32)


def turned(patches: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """(n, s, s, 3) in one of 8 orientations: 0 as they are, 1-3 turned by so many right angles, 4-7 these mirrored."""
    turns = np.rot90(patches, orientation % 4, axes=(1, 2))
    return np.ascontiguousarray(turns if orientation < 4 else turns[:, :, ::-1])


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, 15) logits -> (n, 15) float32, rows sum to 1; summed in float64."""
    e = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True, initial=-np.inf))
    return np.asarray(e / e.sum(1, keepdims=True), np.float32)


def load_classifier(folder: Path, settings: ClassifySettings, threads: int = 0) -> Classifier:
    """The classifier of a model folder, on `threads` processor cores (0: all there are), with the cheaper one that is asked
    first where there is to be one. Raises ModelError, and UsageError for a device or an engine that is not there."""
    first = None
    if settings.cascade:
        cheap = find_model(settings.cascade)
        first = First(Classifier(cheap, open_engine(cheap, settings, threads)), settings.cascade_threshold)
    return Classifier(folder, open_engine(folder, settings, threads), settings.tta, first)


class Batch(NamedTuple):
    """Cells in order, and the pixels, (n, 400, 400, 3) uint8, of those of them that are countable."""

    cells: list[Cell]
    pixels: NDArray[np.uint8]


def gather(patches: Iterable[Patch], size: int) -> Iterator[Batch]:
    """Patches as batches of at most `size` countable ones, and four times as many cells in all."""
    cells: list[Cell] = []
    pixels: list[NDArray[np.uint8]] = []
    for patch in patches:
        cells.append(patch.cell)
        if patch.cell.countable:
            pixels.append(patch.pixels)
        if len(pixels) >= size or len(cells) >= HELD_PER_BATCH * size:
            yield _batch(cells, pixels)
            cells, pixels = [], []
    if cells:
        yield _batch(cells, pixels)


def _batch(cells: list[Cell], pixels: list[NDArray[np.uint8]]) -> Batch:
    return Batch(cells, np.stack(pixels) if pixels else np.zeros((0, PATCH_PX, PATCH_PX, 3), np.uint8))


def classify(batches: Iterable[Batch], classifier: Classifier) -> Iterator[Prediction]:
    """One prediction per cell, in order. Cells that are not countable pass through without probabilities."""
    for batch in batches:
        rows = classifier.judge(batch.pixels).rows() if len(batch.pixels) else iter(())
        for cell in batch.cells:
            yield Prediction(cell, *(next(rows) if cell.countable else (None,)))
