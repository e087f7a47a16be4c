"""Patches, Classifier -> Iterator[Prediction], in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from slidescreen.engines import DEVICE, ClassifySettings, Engine, choose_device, choose_devices, open_engine
from slidescreen.model import load_card
from slidescreen.records import Patch, Prediction

if TYPE_CHECKING:
    from torch import nn

__all__ = ["DEVICE", "Classifier", "ClassifySettings", "choose_device", "choose_devices", "classify", "load_classifier"]

HELD_PER_BATCH: Final = 4


class Classifier:
    """A model folder and the engine that runs its network: types patches."""

    def __init__(self, folder: Path, engine: Engine) -> None:
        self.card = load_card(folder)
        self.engine = engine
        self._folder = folder

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
        return softmax(self.engine.run(patches).logits)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, 15) logits -> (n, 15) float32, rows sum to 1; summed in float64."""
    e = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True, initial=-np.inf))
    return np.asarray(e / e.sum(1, keepdims=True), np.float32)


def load_classifier(folder: Path, settings: ClassifySettings) -> Classifier:
    """The classifier of a model folder. Raises ModelError, and UsageError for a device or an engine that is not there."""
    return Classifier(folder, open_engine(folder, settings))


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
    rows = iter(classifier.probabilities(np.stack(countable)) if countable else ())
    for patch in patches:
        yield Prediction(patch.cell, next(rows) if patch.cell.countable else None)
