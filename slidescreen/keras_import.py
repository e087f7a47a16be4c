"""The published weights of Matek et al. 2019, a Keras 2 `save_weights` HDF5 file, as a model folder.

Such a file has a group per layer, named by Keras: `conv2d_7`, `batch_normalization_3`, `dense_1`. Its list of layers follows
the depth of the graph; what tells one layer from another is the number, which counts layers as they were created. There, a
grouped convolution is 32 convolutions in a row.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from slidescreen.errors import ModelError, UsageError
from slidescreen.model import write_model
from slidescreen.networks import build_network
from slidescreen.records import PATCH_PX, PATCH_UM
from slidescreen.taxonomy import CODES

ARCHITECTURE: Final = "matek2019"
KINDS: Final = ("conv2d", "batch_normalization", "dense")
LAYER_NAME: Final = re.compile(rf"({'|'.join(KINDS)})(?:_(\d+))?")
NORM: Final = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
"""Keras's names of what torch's normalisation holds."""

Shapes = Mapping[str, tuple[int, ...]]

CARD: Final = {
    "architecture": ARCHITECTURE,
    "classes": list(CODES),
    "patch_um": PATCH_UM,
    "input_px": PATCH_PX,
    "mean": [0.0, 0.0, 0.0],
    "std": [1.0, 1.0, 1.0],
    "training_data": "As the publisher of the weights states. The published network: AML-Cytomorphology_LMU (Matek et al. "
    "2019, TCIA), one fold of five.",
    "licence": "As the publisher of the weights states. Data of the published network: CC BY 3.0.",
    "measured": {"not measured here": "see the publication"},
    "limits": "Imported from a Keras weights file; where that came from was not checked. Not measured on whole scans. "
    "Not for diagnosis.",
}


def import_keras(path: Path, folder: Path) -> None:
    """Write a Keras weights file as the new model folder, whole or not at all. Raises as `read_keras` and `write_model` do."""
    write_model(folder, read_keras(path), {"name": folder.name, **CARD, "imported_from": path.name})


def read_keras(path: Path) -> nn.Module:
    """matek2019 with the weights of a Keras file, float32, in evaluation mode.

    Raises UsageError where there is no such file or h5py is not installed, ModelError for a file that is not HDF5, is cut off,
    or does not fit, with the first layer that differs.
    """
    try:
        import h5py
    except ImportError:
        raise UsageError("Keras files need h5py: pip install 'slidescreen[keras]'") from None
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give the weights.hdf5 of the publication")
    network = build_network(ARCHITECTURE)
    try:
        with h5py.File(path, "r") as file:
            _fill(network, _Stored(path, file))
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        said = " ".join(str(error).split())
        raise ModelError(f"{path}: is not a whole Keras HDF5 weights file ({said}); fetch it again") from error
    return network.eval()


def creation_order(names: list[str], kind: str) -> list[str]:
    """The layers of one kind as they were created: by number, a name without one first."""
    found = [match for name in names if (match := LAYER_NAME.fullmatch(name)) and match[1] == kind]
    return [match[0] for match in sorted(found, key=lambda match: int(match[2] or 0))]


class _Stored:
    """The layers of an open file, handed out in the order of creation."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path = path
        self.root = file.get("model_weights", file)  # where a whole model was saved, not its weights alone
        names = _names(self.root, "layer_names")
        for name in names:
            if not LAYER_NAME.fullmatch(name) and _names(self.root[name], "weight_names"):
                raise ModelError(f"{path}: layer {name} has weights and is none of {', '.join(KINDS)}; not {ARCHITECTURE}")
        self.waiting = {kind: deque(creation_order(names, kind)) for kind in KINDS}
        self.counts = {kind: len(found) for kind, found in self.waiting.items()}
        if not any(self.counts.values()):
            raise ModelError(f"{path}: lists no layers with weights; give a file of Keras's save_weights, .hdf5")

    def take(self, kind: str, where: str, needed: Shapes) -> dict[str, torch.Tensor]:
        """The weights of the next layer of a kind, by their Keras names."""
        if not self.waiting[kind]:
            raise ModelError(
                f"{self.path}: holds {self.counts[kind]} {kind} layers and has none left for {where}; not {ARCHITECTURE}"
            )
        name = self.waiting[kind].popleft()
        group = self.root[name]
        found = {stored.split("/")[-1].split(":")[0]: group[stored] for stored in _names(group, "weight_names")}
        for weight, shape in needed.items():
            if weight not in found:
                raise ModelError(f"{self.path}: layer {name} ({where}) has no {weight}; not {ARCHITECTURE}")
            if found[weight].shape != shape:
                raise ModelError(
                    f"{self.path}: layer {name} ({where}): {weight} has shape {found[weight].shape} in place of {shape}; "
                    f"not {ARCHITECTURE}"
                )
        if extra := sorted(set(found) - set(needed)):
            raise ModelError(f"{self.path}: layer {name} ({where}) has an unknown {extra[0]}; not {ARCHITECTURE}")
        return {weight: torch.from_numpy(self._numbers(name, weight, found[weight])) for weight in needed}

    def _numbers(self, name: str, weight: str, stored: Any) -> NDArray[np.float32]:
        if stored.dtype.kind != "f":
            raise ModelError(f"{self.path}: layer {name}: {weight} holds {stored.dtype}, not numbers; not {ARCHITECTURE}")
        with np.errstate(over="ignore"):  # too large for float32 is not finite, and refused below
            numbers: NDArray[np.float32] = stored[()].astype(np.float32)
        if not np.isfinite(numbers).all():
            raise ModelError(f"{self.path}: layer {name}: {weight} is not finite; fetch the file again")
        return numbers

    def check_empty(self) -> None:
        """Raises ModelError for a layer that nobody took."""
        for kind, names in self.waiting.items():
            if names:
                raise ModelError(
                    f"{self.path}: layer {names[0]} is one too many: {self.counts[kind]} {kind} layers; not {ARCHITECTURE}"
                )


def _names(group: Any, attribute: str) -> list[str]:
    """A list of names kept as an attribute, or, where it was too long for one, as attribute0, attribute1, ..."""
    if attribute in group.attrs:
        parts = [group.attrs[attribute]]
    else:
        parts, i = [], 0
        while f"{attribute}{i}" in group.attrs:
            parts.append(group.attrs[f"{attribute}{i}"])
            i += 1
    return [name.decode() if isinstance(name, bytes) else str(name) for part in parts for name in part]


def _fill(network: nn.Module, stored: _Stored) -> None:
    """Layers of the network are defined in the order in which Keras created its own."""
    with torch.no_grad():
        for where, layer in network.named_modules():
            if isinstance(layer, nn.Conv2d):
                _fill_convolution(layer, where, stored)
            elif isinstance(layer, nn.BatchNorm2d):
                taken = stored.take("batch_normalization", where, dict.fromkeys(NORM, (layer.num_features,)))
                for theirs, ours in NORM.items():
                    getattr(layer, ours).copy_(taken[theirs])
            elif isinstance(layer, nn.Linear):
                taken = stored.take(
                    "dense", where, {"kernel": tuple(layer.weight.T.shape), "bias": tuple(layer.weight.shape[:1])}
                )
                layer.weight.copy_(taken["kernel"].T)
                layer.bias.copy_(taken["bias"])
    stored.check_empty()


def _fill_convolution(layer: nn.Conv2d, where: str, stored: _Stored) -> None:
    """Kernels are (height, width, in, out) there and (out, in, height, width) here."""
    outputs = layer.out_channels // layer.groups
    needed = {"kernel": (*layer.kernel_size, layer.in_channels // layer.groups, outputs), "bias": (outputs,)}
    kernels, biases = [], []
    for i in range(layer.groups):
        taken = stored.take("conv2d", f"{where}, group {i + 1} of {layer.groups}" if layer.groups > 1 else where, needed)
        kernels.append(taken["kernel"].permute(3, 2, 0, 1))
        biases.append(taken["bias"])
    layer.weight.copy_(torch.cat(kernels))
    assert layer.bias is not None
    layer.bias.copy_(torch.cat(biases))
