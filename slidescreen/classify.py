"""Patches, Classifier -> Iterator[Prediction], in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slidescreen.engines import DEVICE, ClassifySettings, Engine, choose_device, choose_devices, open_engine
from slidescreen.model import load_card, load_rejection
from slidescreen.records import Patch, Prediction

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "DEVICE",
    "Classifier",
    "ClassifySettings",
    "Judgement",
    "choose_device",
    "choose_devices",
    "classify",
    "load_classifier",
]

HELD_PER_BATCH: Final = 4


class Judgement(NamedTuple):
    """Of n patches. `probabilities` (n, 15) float32, rows sum to 1, columns in the order of the card's classes. `outlier` and
    `agreement` (n,) float32 or None, see `records.Prediction`."""

    probabilities: NDArray[np.float32]
    outlier: NDArray[np.float32] | None = None
    agreement: NDArray[np.float32] | None = None

    def rows(self) -> Iterator[tuple[NDArray[np.float32], float | None, float | None]]:
        """Probabilities, outlier score and agreement of each patch."""
        for i, p in enumerate(self.probabilities):
            outlier, agreement = (None if each is None else float(each[i]) for each in self[1:])
            yield p, outlier, agreement


class Classifier:
    """A model folder and the engine that runs its network: types patches. With `tta` 8 each is looked at in four turns and
    their mirror images: probabilities and outlier scores are averaged."""

    def __init__(self, folder: Path, engine: Engine, tta: int = 1) -> None:
        self.card = load_card(folder)
        self.engine = engine
        self.tta = tta
        self._folder = folder
        self._rejection = load_rejection(folder, self.card)

    @property
    def device(self) -> str:
        """The torch device nearest to the engine."""
        return self.engine.device.split(",")[0]

    @property
    def told(self) -> str:
        """Where and with what it types: "cpu, torch float32"."""
        return f"{self.engine.device}, {self.engine.name}"

    @property
    def batch_size(self) -> int:
        """As many patches as are best given at once."""
        return self.engine.batch_size

    @cached_property
    def network(self) -> nn.Module:
        """The torch network in float32, on `device`, for `explain.Differentiable`. Loaded when first asked for."""
        from slidescreen.model import load_network

        return load_network(self._folder, self.card).requires_grad_(False).to(self.device)

    def probabilities(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, 400, 400, 3) uint8 RGB -> (n, 15) float32, rows sum to 1, columns in the order of `card.classes`."""
        return self.judge(patches).probabilities

    def judge(self, patches: NDArray[np.uint8]) -> Judgement:
        """(n, 400, 400, 3) uint8 RGB -> calibrated probabilities, and what speaks against believing them."""
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


def load_classifier(folder: Path, settings: ClassifySettings) -> Classifier:
    """The classifier of a model folder. Raises ModelError, and UsageError for a device or an engine that is not there."""
    return Classifier(folder, open_engine(folder, settings), settings.tta)


def classify(patches: Iterable[Patch], classifier: Classifier) -> Iterator[Prediction]:
    """One prediction per patch, in order. Cells that are not countable pass through without probabilities.

    Holds at most one batch of countable patches and four batches in all.
    """
    held: list[Patch] = []
    waiting = 0
    for patch in patches:
        held.append(patch)
        waiting += patch.cell.countable
        if waiting >= classifier.batch_size or len(held) >= HELD_PER_BATCH * classifier.batch_size:
            yield from _classify_batch(held, classifier)
            held, waiting = [], 0
    yield from _classify_batch(held, classifier)


def _classify_batch(patches: list[Patch], classifier: Classifier) -> Iterator[Prediction]:
    countable = [p.pixels for p in patches if p.cell.countable]
    rows = classifier.judge(np.stack(countable)).rows() if countable else iter(())
    for patch in patches:
        yield Prediction(patch.cell, *(next(rows) if patch.cell.countable else (None,)))
