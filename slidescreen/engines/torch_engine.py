"""Torch: float32 on a CPU, which is the reference; bfloat16 on CUDA, captured as graphs.

Whatever is asked, the network sees batches of one shape, filled up with what was there before: a cell's answer does not depend
on how many come together or on which.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from slidescreen.engines.engine import Outputs, joined
from slidescreen.engines.network import WithFeatures, in_bfloat16
from slidescreen.engines.settings import ClassifySettings
from slidescreen.model import ModelCard, prepare
from slidescreen.records import PATCH_PX

log = logging.getLogger(__name__)

CPU_SHAPE: Final = 4
CUDA_SHAPE: Final = 128
LANES: Final = 2
WARM_UPS: Final = 3


class Lane(Protocol):
    """Takes one batch of at most `shape` patches at a time."""

    def start(self, patches: NDArray[np.uint8]) -> None: ...

    def outputs(self, n: int) -> Outputs:
        """Of the first n patches of what was started."""
        ...


class TorchEngine:
    """See `Engine`. When a GPU's memory does not suffice the batches are halved, and the log says so."""

    def __init__(self, network: WithFeatures, card: ModelCard, device: str, settings: ClassifySettings) -> None:
        cuda = device.startswith("cuda")
        wanted = settings.precision
        low = wanted == "bfloat16" or (cuda and wanted == "auto" and not settings.deterministic)
        self.device = device
        self.name = f"torch {'bfloat16' if low else 'float32'}{', deterministic' if settings.deterministic else ''}"
        ready = (in_bfloat16(network) if low else network).to(memory_format=torch.channels_last).to(device)
        self.shape = CUDA_SHAPE if cuda else CPU_SHAPE
        whole = _Whole(ready, card, torch.bfloat16 if low else torch.float32)
        while True:
            try:
                with _algorithms(settings.deterministic):
                    self._lanes = open_lanes(whole, self.shape, device)
                break
            except torch.OutOfMemoryError:
                if self.shape == 1:
                    raise
            torch.cuda.empty_cache()  # not in the handler, where the error still holds what did not fit
            self.shape //= 2
            log.warning("out of memory on %s: batch size halved to %d", device, self.shape)
        self.batch_size = settings.batch_size or self.shape * (2 * LANES if cuda else 4)

    def run(self, patches: NDArray[np.uint8]) -> Outputs:
        """See `Engine`. One lane copies while another computes."""
        parts: list[Outputs] = []
        under_way: list[tuple[Lane, int]] = []
        for i, start in enumerate(range(0, len(patches), self.shape)):
            if len(under_way) == len(self._lanes):
                lane, n = under_way.pop(0)
                parts.append(lane.outputs(n))
            some = patches[start : start + self.shape]
            lane = self._lanes[i % len(self._lanes)]
            lane.start(some)
            under_way.append((lane, len(some)))
        return joined([*parts, *(lane.outputs(n) for lane, n in under_way)])


class _Whole(nn.Module):
    """(n, 400, 400, 3) uint8 on the device -> logits, features in float32 on the device."""

    def __init__(self, network: WithFeatures, card: ModelCard, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.card, self.dtype = network, card, dtype

    def forward(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = prepare(patches, self.card).to(dtype=self.dtype, memory_format=torch.channels_last)
        logits, features = self.network(x)
        return logits, features


def open_lanes(whole: nn.Module, shape: int, device: str) -> list[Lane]:
    """Two on CUDA, one on a CPU. Raises torch.OutOfMemoryError."""
    if device.startswith("cuda"):
        return [_CudaLane(whole, shape, device) for _ in range(LANES)]
    return [_CpuLane(whole, shape)]


@contextlib.contextmanager
def _algorithms(deterministic: bool) -> Iterator[None]:
    """While a lane is made, and with it the algorithms are chosen: always the same ones, or the fastest."""
    chosen = torch.backends.cudnn.flags(
        enabled=True, benchmark=not deterministic, deterministic=deterministic, allow_tf32=False
    )
    with chosen:
        yield


class _CpuLane:
    """Computes when asked for the outputs."""

    def __init__(self, whole: nn.Module, shape: int) -> None:
        self._whole = whole
        self._patches = torch.zeros((shape, PATCH_PX, PATCH_PX, 3), dtype=torch.uint8)

    def start(self, patches: NDArray[np.uint8]) -> None:
        self._patches[: len(patches)] = torch.from_numpy(patches)

    def outputs(self, n: int) -> Outputs:
        with torch.inference_mode():
            logits, features = self._whole(self._patches)
        return Outputs(logits[:n].numpy(), features[:n].numpy())


class _CudaLane:
    """A stream of its own: pinned memory -> GPU -> captured graph -> pinned memory, without waiting in between."""

    def __init__(self, whole: nn.Module, shape: int, device: str) -> None:
        size = (shape, PATCH_PX, PATCH_PX, 3)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._host = torch.zeros(size, dtype=torch.uint8, pin_memory=True)
        self._patches = torch.zeros(size, dtype=torch.uint8, device=device)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device), torch.inference_mode():
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):  # cuDNN chooses its algorithms before the capture
                    whole(self._patches)
            self._stream.synchronize()
            with torch.cuda.graph(self._graph, stream=self._stream):
                self._found = whole(self._patches)
        self._back = [torch.empty(each.shape, dtype=each.dtype, pin_memory=True) for each in self._found]

    def start(self, patches: NDArray[np.uint8]) -> None:
        self._host[: len(patches)] = torch.from_numpy(patches)
        with torch.cuda.stream(self._stream):
            self._patches.copy_(self._host, non_blocking=True)
            self._graph.replay()
            for back, found in zip(self._back, self._found, strict=True):
                back.copy_(found, non_blocking=True)

    def outputs(self, n: int) -> Outputs:
        self._stream.synchronize()
        return Outputs(*(back[:n].numpy().copy() for back in self._back))
