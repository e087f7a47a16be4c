"""Plain torch: float32 on a CPU, which is the reference; on CUDA channels-last, bfloat16, copies from pinned memory."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from slidescreen.engines.engine import Outputs
from slidescreen.engines.settings import ClassifySettings, choose_device
from slidescreen.model import ModelCard, load_network, prepare

log = logging.getLogger(__name__)

CPU_BATCH: Final = 16
CUDA_BATCH: Final = 256


class WithFeatures(nn.Module):
    """A network, and what its last dense layer is given: (n, 3, s, s) -> (n, 15) logits, (n, d) features."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._given: list[torch.Tensor] = []
        head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        head.register_forward_pre_hook(self._note)

    def _note(self, _head: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._given = [inputs[0]]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.network(x), self._given.pop()


class TorchEngine:
    """See `Engine`. When memory runs out the batch is halved, once and for all, and the log says so."""

    def __init__(self, folder: Path, card: ModelCard, settings: ClassifySettings) -> None:
        self.card = card
        self.device = choose_device(settings.device)
        self._cuda = self.device.startswith("cuda")
        self.name = "torch bfloat16" if self._cuda else "torch float32"
        self.batch_size = settings.batch_size or (CUDA_BATCH if self._cuda else CPU_BATCH)
        network = WithFeatures(load_network(folder, card)).eval()
        self._network = network.requires_grad_(False).to(memory_format=torch.channels_last).to(self.device)

    def run(self, patches: NDArray[np.uint8]) -> Outputs:
        """See `Engine`."""
        results: list[Outputs] = []
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
            start += len(results[-1].logits)
        if not results:
            return Outputs(np.zeros((0, len(self.card.classes)), np.float32), np.zeros((0, 0), np.float32))
        return Outputs(*(np.concatenate(parts) for parts in zip(*results, strict=True)))

    def _forward(self, patches: NDArray[np.uint8]) -> Outputs:
        host = torch.from_numpy(np.ascontiguousarray(patches))
        if self._cuda:
            host = host.pin_memory()
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=self._cuda):
            x = prepare(host.to(self.device, non_blocking=True), self.card)
            logits, features = self._network(x.contiguous(memory_format=torch.channels_last))
            return Outputs(logits.float().cpu().numpy(), features.float().cpu().numpy())
