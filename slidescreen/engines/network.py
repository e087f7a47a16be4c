"""A torch network made ready to be run or compiled: logits and features out, normalisation folded in."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from slidescreen.model import ModelCard, load_network


class WithFeatures(nn.Module):
    """(n, 3, s, s) -> (n, 15) logits, (n, d) features: what the last dense layer is given. That layer and what comes after it
    are computed in float32, whatever the rest is computed in."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._given: list[torch.Tensor] = []
        self.head = head_of(network)
        self.head.register_forward_pre_hook(self._note)

    def _note(self, _head: nn.Module, inputs: tuple[Any, ...]) -> tuple[torch.Tensor]:
        self._given = [inputs[0].float()]
        return (self._given[0],)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.network(x), self._given.pop()


def load_with_features(folder: Path, card: ModelCard) -> WithFeatures:
    """The model's network, float32, in evaluation mode, without gradients. Raises ModelError."""
    ready: WithFeatures = WithFeatures(load_network(folder, card)).eval().requires_grad_(False)
    return ready


def in_bfloat16(network: WithFeatures) -> WithFeatures:
    """The same with normalisation folded into the convolutions, in bfloat16 but for its last layer."""
    low: WithFeatures = WithFeatures(_lowered(network.network)).eval().requires_grad_(False)
    return low


class LogitsInBfloat16(nn.Module):
    """(n, 3, s, s) float32 -> (n, 15) float32 logits, computed as `in_bfloat16` does. It keeps nothing between calls, so that
    threads may share it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = _lowered(network).to(memory_format=torch.channels_last)
        head_of(self.network).register_forward_pre_hook(lambda _head, inputs: (inputs[0].float(),))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(x.to(torch.bfloat16, memory_format=torch.channels_last))
        return logits


def head_of(network: nn.Module) -> nn.Linear:
    """The last dense layer."""
    return [module for module in network.modules() if isinstance(module, nn.Linear)][-1]


def _lowered(network: nn.Module) -> nn.Module:
    """A copy with normalisation folded into the convolutions, in bfloat16 but for its last dense layer."""
    low = copy.deepcopy(network)
    fold(low)
    low.bfloat16()
    head_of(low).float()
    return low


def fold(network: nn.Module) -> None:
    """Put each batch normalisation that follows a convolution among its parent's layers into that convolution, in place."""
    for module in list(network.modules()):
        for (name, layer), (after, norm) in itertools.pairwise(list(module.named_children())):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(layer, norm))
                setattr(module, after, nn.Identity())
