"""The networks that can be trained and screened with, by the name a model card gives.

Every network takes (n, 3, S, S) float, nominally S = 400, and gives (n, 15) logits. All pool globally, so that other sizes work
too.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from slidescreen.depthwise import depthwise
from slidescreen.errors import ModelError

CARDINALITY: Final = 32
LEAK: Final = 0.3
STAGES: Final = ((3, 128, 256), (4, 256, 512), (6, 512, 1024), (3, 1024, 2048))
"""Of matek2019: blocks, inner channels, outer channels."""
MERGED: Final = (1, 2)
"""Outputs of matek2019's dense layer that are two kinds of erythroblast, and one class."""


def build_network(architecture: str, classes: int = 15) -> nn.Module:
    """A network with random weights, in training mode. Raises ModelError for a name that `NETWORKS` does not have."""
    if architecture not in NETWORKS:
        raise ModelError(f"architecture {architecture!r} is not known (known: {', '.join(NETWORKS)})")
    return NETWORKS[architecture](classes)


def _resnext50(classes: int) -> nn.Module:
    """ResNeXt-50 32x4d (Xie et al. 2017) with torchvision's layers and key names."""
    from torchvision.models import resnext50_32x4d  # imported here: it takes a second, and other networks do without

    network: nn.Module = resnext50_32x4d(weights=None, num_classes=classes)
    return network


def _same_padding(x: torch.Tensor, kernel: int, stride: int, value: float = 0.0) -> torch.Tensor:
    """Padded so that a window gives ceil(size / stride) values; an odd pixel goes to the bottom and right, as in TensorFlow."""
    height, width = (max((math.ceil(n / stride) - 1) * stride + kernel - n, 0) for n in (int(x.shape[2]), int(x.shape[3])))
    if not height and not width:
        return x
    return functional.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2), value=value)


class SameConv2d(nn.Conv2d):
    """Convolution with a bias, TensorFlow's "same" padding and Keras's first weights (Glorot uniform, bias 0)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups)
        fans = kernel**2 * (inputs + outputs) / groups  # each group is a layer of its own in Keras
        nn.init.uniform_(self.weight, -math.sqrt(6 / fans), math.sqrt(6 / fans))
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(_same_padding(x, self.kernel_size[0], self.stride[0]))


def _norm(channels: int) -> nn.BatchNorm2d:
    """Keras's momentum 0.99 is the share of the old value; torch's is that of the new one."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Matek2019Block(nn.Module):
    """Bottleneck with 32 groups; `shortcut` is None where it is the identity."""

    def __init__(self, inputs: int, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = SameConv2d(inputs, inner, 1), _norm(inner)
        self.conv2, self.bn2 = SameConv2d(inner, inner, 3, stride, groups=CARDINALITY), _norm(inner)
        self.conv3, self.bn3 = SameConv2d(inner, outer, 1), _norm(outer)
        self.shortcut = nn.Sequential(SameConv2d(inputs, outer, 1, stride), _norm(outer)) if inputs != outer else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.leaky_relu(self.bn1(self.conv1(x)), LEAK, inplace=True)
        y = functional.leaky_relu(self.bn2(self.conv2(y)), LEAK, inplace=True)
        y = self.bn3(self.conv3(y)) + (x if self.shortcut is None else self.shortcut(x))
        return functional.leaky_relu(y, LEAK, inplace=True)


class Matek2019(nn.Module):
    """The network of Matek et al. 2019 as published: ResNeXt-50 32x4d as built in Keras 2.

    Takes px / 255, without mean and deviation. The dense layer has one output more than there are classes: outputs 1 and 2 are
    merged as log(e^a + e^b), which under softmax is exactly the sum of their probabilities.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv, self.bn = SameConv2d(3, 64, 7, 2), _norm(64)
        blocks: list[nn.Module] = []
        inputs = 64
        for stage, (count, inner, outer) in enumerate(STAGES):
            for block in range(count):
                blocks.append(Matek2019Block(inputs, inner, outer, 2 if stage and not block else 1))
                inputs = outer
        self.blocks = nn.Sequential(*blocks)
        self.dense = nn.Linear(inputs, classes + 1)
        nn.init.xavier_uniform_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.leaky_relu(self.bn(self.conv(x)), LEAK, inplace=True)
        x = functional.max_pool2d(_same_padding(x, 3, 2, -math.inf), 3, 2)
        x = self.blocks(x)
        logits: torch.Tensor = self.dense(x.mean((2, 3)))
        first, last = MERGED
        merged = torch.logsumexp(logits[:, first : last + 1], dim=1, keepdim=True)
        return torch.cat((logits[:, :first], merged, logits[:, last + 1 :]), dim=1)


LITE_STAGES: Final = (
    *((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4)),
    (6, 3, 1, 320, 1),
)
"""Of efficientnet_lite0: widening, kernel, stride of the first block, channels, blocks."""


class _PlainConv2d(nn.Conv2d):
    """Convolution without bias, with TensorFlow's "same" padding. Depthwise ones learn fast on CPUs, see `depthwise`."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)
        nn.init.normal_(self.weight, std=math.sqrt(2 * groups / (kernel**2 * outputs)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = _same_padding(x, self.kernel_size[0], self.stride[0])
        if self.groups > 1 and self.training and torch.is_autocast_enabled(x.device.type):
            low = torch.get_autocast_dtype(x.device.type)
            return depthwise(x.to(low), self.weight.to(low), self.stride[0])
        return super().forward(x)


class LiteBlock(nn.Module):
    """Inverted bottleneck: widened, one kernel a channel, narrowed; the input is added where the shape allows it."""

    def __init__(self, inputs: int, outputs: int, widening: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = inputs * widening
        layers: list[nn.Module] = [_PlainConv2d(inputs, inner), _norm(inner), nn.ReLU6(inplace=True)] if widening > 1 else []
        layers += [_PlainConv2d(inner, inner, kernel, stride, groups=inner), _norm(inner), nn.ReLU6(inplace=True)]
        self.layers = nn.Sequential(*layers, _PlainConv2d(inner, outputs), _norm(outputs))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(x)
        return x + y if self.adds else y


def _efficientnet_lite0(classes: int) -> nn.Module:
    """EfficientNet-Lite0 (EfficientNet-B0 of Tan and Le 2019 without squeeze-and-excitation and with ReLU6, as released with
    TensorFlow): about a tenth of the arithmetic of resnext50_32x4d."""
    layers: list[nn.Module] = [_PlainConv2d(3, 32, 3, 2), _norm(32), nn.ReLU6(inplace=True)]
    inputs = 32
    for widening, kernel, stride, outputs, count in LITE_STAGES:
        for block in range(count):
            layers.append(LiteBlock(inputs, outputs, widening, kernel, 1 if block else stride))
            inputs = outputs
    layers += [_PlainConv2d(inputs, 1280), _norm(1280), nn.ReLU6(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(OrderedDict(features=nn.Sequential(*layers), dropout=nn.Dropout(0.2), fc=nn.Linear(1280, classes)))


SEQUENTIAL_CHANNELS: Final = (32, 64, 128, 256, 512)


def _sequential(classes: int) -> nn.Module:
    """A plain stack, for comparison with the residual networks, as Matek et al. 2019 did (Supplementary Note 5).

    The paper's text says no more than "a deep sequential model": the layout is ours. Five times two 3 x 3 convolutions, each
    with normalisation and ReLU, then a 2 x 2 max-pool, or after the last the global mean; dropout; dense.
    """
    layers: list[nn.Module] = []
    inputs = 3
    for i, channels in enumerate(SEQUENTIAL_CHANNELS):
        if i:
            layers.append(nn.MaxPool2d(2))
        for _ in range(2):
            convolution = nn.Conv2d(inputs, channels, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
            inputs = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(inputs, classes))


NETWORKS: Final[Mapping[str, Callable[[int], nn.Module]]] = MappingProxyType(
    {
        "resnext50_32x4d": _resnext50,
        "efficientnet_lite0": _efficientnet_lite0,
        "matek2019": Matek2019,
        "sequential": _sequential,
    }
)
"""Builders by name; each takes the number of classes."""
FROM_IMAGENET: Final = ("resnext50_32x4d", "efficientnet_lite0")
"""Those that can start from ImageNet weights."""


def load_weights(network: nn.Module, path: Path, architecture: str, skip: str = "") -> None:
    """Put the weights of a safetensors file, as float32, into the network.

    `skip`: layers whose names begin so keep what they have. Raises ModelError naming the first layer that is missing, unknown
    or of another shape.
    """
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: is not a safetensors file ({error}); give weights of {architecture}") from error
    expected = network.state_dict()
    wanted = {key: value for key, value in expected.items() if not (skip and key.startswith(skip))}
    found = {key: value for key, value in state.items() if not (skip and key.startswith(skip))}
    for key, value in wanted.items():
        if key not in found and not key.endswith("num_batches_tracked"):
            raise ModelError(f"{path}: layer {key} is missing; the weights are not of {architecture}")
        if key in found and found[key].shape != value.shape:
            raise ModelError(
                f"{path}: layer {key} has shape {tuple(found[key].shape)} in place of {tuple(value.shape)}; "
                f"the weights are not of {architecture}"
            )
    for key in found:
        if key not in wanted:
            raise ModelError(f"{path}: layer {key} is unknown; the weights are not of {architecture}")
    network.load_state_dict(expected | {k: v.float() if v.is_floating_point() else v for k, v in found.items()})


def start_from_imagenet(path: Path, classes: int = 15, architecture: str = "resnext50_32x4d") -> nn.Module:
    """A network that starts from ImageNet weights: a safetensors file, for resnext50_32x4d with torchvision's key names, for
    efficientnet_lite0 with those of `build_network`, which know px / 255 less 0.5, divided by 0.25 (`models/imagenet`).

    Their 1000-way head is dropped; the new head is random. Raises ModelError naming the first layer that differs.
    """
    network = build_network(architecture, classes)
    load_weights(network, path, architecture, skip="fc.")
    return network
