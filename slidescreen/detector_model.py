"""The leukocyte detector's network and its checked weights.

A small U-Net at a fixed scale. From a quarter of the resolution it gives, per 4 x 4 px, how much a centre lies there, what kind
of body it is and where that body's centre is, and per 2 x 2 px whether they are body and whether they are nucleus.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from slidescreen.detector_card import ARCHITECTURE, DetectorCard
from slidescreen.errors import ModelError
from slidescreen.model import check_weights

NETWORK_UM_PER_PX: Final = 0.3
STRIDE: Final = 16
"""Images start and end on multiples of this, so that a px is seen the same wherever the image begins."""
COARSE: Final = 4
"""Px per step of the centre, kind and offset maps."""
FINE: Final = 2
"""Px per step of the body and nucleus maps."""
KINDS: Final = ("leukocyte", "platelet", "artefact")
OFFSET_UM: Final = 4.0
"""Unit of the offset outputs."""


@dataclass(frozen=True, slots=True, eq=False)
class Maps:
    """Outputs for (n, 3, h, w), as logits. `centre` (n, 1, h/4, w/4). `kind` (n, 3, h/4, w/4) in the order of `KINDS`.
    `offset` (n, 2, h/4, w/4): x, y from the middle of the step to the body's centre, in units of 4 um.
    `masks` (n, 2, h/2, w/2): body, nucleus."""

    centre: torch.Tensor
    kind: torch.Tensor
    offset: torch.Tensor
    masks: torch.Tensor


class _Layer(nn.Sequential):
    """Convolution, normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class LeukocyteNet(nn.Module):
    """RGB px / 255, (n, 3, h, w) float with h and w multiples of 16, -> outputs (n, channels, h/4, w/4): see `split_maps`.

    What the mask outputs take from the half resolution is stacked into channels too, 2 x 2 px each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.at_half = _Layer(3, 16, kernel=4, stride=2)
        self.at_quarter = _Layer(16, 32, stride=2)
        self.at_eighth = nn.Sequential(_Layer(32, 48, stride=2), _Layer(48, 48))
        self.at_sixteenth = nn.Sequential(_Layer(48, 64, stride=2), _Layer(64, 64), _Layer(64, 64))
        self.to_eighth = nn.Conv2d(64, 48, 1)
        self.join_eighth = _Layer(48, 48)
        self.to_quarter = nn.Conv2d(48, 32, 1)
        self.join_quarter = _Layer(32, 32)
        self.heads = nn.Conv2d(32, 1 + len(KINDS) + 2 + 2 * (COARSE // FINE) ** 2, 1)
        self.rims = nn.Conv2d(16, 2, 3, padding=1, bias=False)
        nn.init.constant_(self.heads.bias[:1], -4.0)  # type: ignore[index]  # centres are rare

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = self.at_half(2 * x - 1)
        quarter = self.at_quarter(half)
        eighth = self.at_eighth(quarter)
        deep = self.to_eighth(self.at_sixteenth(eighth))
        eighth = self.join_eighth(eighth + functional.interpolate(deep, scale_factor=2.0))
        fine = self.join_quarter(quarter + functional.interpolate(self.to_quarter(eighth), scale_factor=2.0))
        heads: torch.Tensor = self.heads(fine)
        rims = functional.conv2d(half, _unshuffled(self.rims.weight), stride=COARSE // FINE, padding=1)
        return torch.cat((heads[:, : -rims.shape[1]], heads[:, -rims.shape[1] :] + rims), dim=1)


def _unshuffled(weight: torch.Tensor) -> torch.Tensor:
    """(c, i, 3, 3) -> (4 c, i, 4, 4): with a stride of 2, the convolution and `pixel_unshuffle` by 2 after it in one."""
    placed = [functional.pad(weight, (x, 1 - x, y, 1 - y)) for y in (0, 1) for x in (0, 1)]
    return torch.stack(placed, dim=1).flatten(0, 1)


def split_maps(heads: torch.Tensor) -> Maps:
    """The network's output taken apart."""
    parts = [1, len(KINDS), 2, heads.shape[1] - 3 - len(KINDS)]
    centre, kind, offset, masks = torch.split(heads, parts, dim=1)
    return Maps(centre, kind, offset, functional.pixel_shuffle(masks, COARSE // FINE))


def move_borders(network: LeukocyteNet, body: float, nucleus: float) -> LeukocyteNet:
    """A copy whose logits of body and of nucleus are larger by so much: outlines further out, or further in."""
    moved = LeukocyteNet()
    moved.load_state_dict(network.state_dict())
    per_map = (COARSE // FINE) ** 2
    with torch.no_grad():
        bias = moved.heads.bias
        assert bias is not None
        bias[-2 * per_map : -per_map] += body
        bias[-per_map:] += nucleus
    return moved.eval()


def flops_per_px() -> float:
    """Floating point operations of all convolutions per px of the network's input (a multiply-add is two); the zeros by which
    the rims' kernels are enlarged are not counted."""
    network, side, total = LeukocyteNet().eval(), 16 * STRIDE, 0

    def count(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            total += 2 * layer.weight[0].numel() * output.numel()

    for layer in network.modules():
        layer.register_forward_hook(count)
    with torch.inference_mode():
        network(torch.zeros(1, 3, side, side))
    total += 2 * network.rims.weight.numel() * (side // FINE) ** 2
    return total / side**2


def load_detector_network(folder: Path, card: DetectorCard) -> LeukocyteNet:
    """The network with its weights, in evaluation mode, on the CPU. Raises ModelError when they were altered or do not fit."""
    path = check_weights(folder, card.sha256)
    network = LeukocyteNet()
    try:
        network.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise ModelError(f"{path}: is not a safetensors file of {ARCHITECTURE} ({' '.join(str(error).split())})") from error
    return network.eval()
