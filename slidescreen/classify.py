"""Patches, Classifier -> Iterator[Prediction], in batches."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from slidescreen.errors import UsageError
from slidescreen.model import ModelCard, load_card, load_network, prepare
from slidescreen.records import Patch, Prediction

log = logging.getLogger(__name__)

CPU_BATCH: Final = 16
CUDA_BATCH: Final = 256
HELD_PER_BATCH: Final = 4
DEVICE: Final = re.compile(r"auto|cpu|cuda(:\d+(,\d+)*)?")


@dataclass(frozen=True, slots=True)
class ClassifySettings:
    """`device`: auto (CUDA where there is one), cpu, cuda, or cuda:1; several, "cuda:0,1", are shared out between the workers
    of a batch. `batch_size` in patches; 0 chooses 16 on a CPU, 256 on CUDA."""

    device: str = "auto"
    batch_size: int = 0


class Classifier(Protocol):
    """Types patches."""

    @property
    def card(self) -> ModelCard: ...

    @property
    def device(self) -> str: ...

    @property
    def batch_size(self) -> int: ...

    def probabilities(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, 400, 400, 3) uint8 RGB -> (n, 15) float32, rows sum to 1, columns in the order of `card.classes`."""
        ...


class TorchClassifier:
    """Plain torch: float32 on a CPU; on CUDA channels-last, bfloat16 autocast, copies from pinned memory that do not wait."""

    def __init__(self, folder: Path, settings: ClassifySettings) -> None:
        self.card = load_card(folder)
        self.device = choose_device(settings.device)
        self._cuda = self.device.startswith("cuda")
        self.batch_size = settings.batch_size or (CUDA_BATCH if self._cuda else CPU_BATCH)
        network = load_network(folder, self.card)
        self.network = network.requires_grad_(False).to(memory_format=torch.channels_last).to(self.device)

    def probabilities(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Classifier`. When memory runs out the batch is halved, once and for all, and the log says so."""
        results: list[NDArray[np.float32]] = []
        start = 0
        while start < len(patches):
            try:
                results.append(self._forward(patches[start : start + self.batch_size]))
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
                self.batch_size = max(1, self.batch_size // 2)
                log.warning("out of memory on %s: batch size halved to %d", self.device, self.batch_size)
                if self._cuda:
                    torch.cuda.empty_cache()
                continue
            start += len(results[-1])
        return np.concatenate(results) if results else np.zeros((0, len(self.card.classes)), np.float32)

    def _forward(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        host = torch.from_numpy(np.ascontiguousarray(patches))
        if self._cuda:
            host = host.pin_memory()
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=self._cuda):
            x = prepare(host.to(self.device, non_blocking=True), self.card)
            logits = self.network(x.contiguous(memory_format=torch.channels_last))
            return np.asarray(torch.softmax(logits.float(), dim=1).cpu().numpy())


def choose_device(wanted: str) -> str:
    """The torch device for auto, cpu, cuda or cuda:1; of several the first. Raises UsageError when there is none such."""
    return choose_devices(wanted)[0]


def choose_devices(wanted: str) -> list[str]:
    """The torch devices for auto, cpu, cuda or "cuda:0,1". Raises UsageError when there is none such."""
    if wanted == "auto":
        return ["cuda" if torch.cuda.is_available() else "cpu"]
    if wanted == "cpu":
        return ["cpu"]
    if not DEVICE.fullmatch(wanted):
        raise UsageError(f"--device {wanted}: unknown; use auto, cpu, cuda or cuda:0,1")
    if not torch.cuda.is_available():
        raise UsageError(
            f"--device {wanted}: no CUDA device is usable here; use --device auto, or check the driver with nvidia-smi"
        )
    numbers = [int(n) for n in wanted[5:].split(",") if n]
    missing = [n for n in numbers if n >= torch.cuda.device_count()]
    if missing or len(set(numbers)) < len(numbers):
        raise UsageError(
            f"--device {wanted}: there are {torch.cuda.device_count()} CUDA devices, counted from 0; name each once"
        )
    return [f"cuda:{n}" for n in numbers] or ["cuda"]


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
