"""Does a cell look like a leukocyte of the 15 classes at all? A score on the network's features, light enough for every cell.

The score is the larger of two, each brought to the same scale (0: as the middle of the leukocytes it was fitted on, 1: as the
last 0.5 % of them). `foreign`: a logistic regression between leukocytes and what is none (platelets, red cells, empty ground,
clumps, blurred cells), which knows what it was shown. `far`: the squared distance from the subspace in which the features of
leukocytes lie, which knows nothing but them, and so finds what nobody thought of. Features are square roots of the pooled
activations, signs kept: these are skewed, and roots nearly normal; for `far`, of length 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from slidescreen.errors import ModelError

Floats = NDArray[np.float32]
NAMES: Final = ("weight", "mean", "basis", "middle", "tail")


@dataclass(frozen=True, slots=True, eq=False)
class Rejection:
    """`weight` (d,): of the logistic regression, whose constant is in `middle`. `mean` (d,), `basis` (d, k) with orthonormal
    columns: the subspace. `middle`, `tail` (2,): what is 0 and what is 1 of `foreign` and of `far`. All float32."""

    weight: Floats
    mean: Floats
    basis: Floats
    middle: Floats
    tail: Floats

    def scores(self, features: Floats) -> Floats:
        """(n, d) features -> (n,) float32; the larger, the less it looks like a leukocyte of the 15 classes."""
        if not len(features):
            return np.zeros(0, np.float32)
        rooted = roots(features)
        both = np.stack([rooted @ self.weight, distance(unit(rooted), self.mean, self.basis)], axis=1)
        return np.asarray(((both - self.middle) / (self.tail - self.middle)).max(1, initial=-np.inf), np.float32)


def roots(features: Floats) -> Floats:
    """Square roots that keep the sign, (n, d)."""
    return np.asarray(np.sign(features) * np.sqrt(np.abs(features)), np.float32)


def unit(vectors: Floats) -> Floats:
    """Each row brought to length 1; a row of zeros stays."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(length > 0, length, 1), np.float32)


def distance(vectors: Floats, mean: Floats, basis: Floats) -> Floats:
    """(n,) squared distance of (n, d) vectors from the subspace through `mean` that the columns of `basis` span."""
    centred = vectors - mean
    return np.asarray((centred**2).sum(1) - ((centred @ basis) ** 2).sum(1), np.float32)


def save_rejection(path: Path, rejection: Rejection) -> None:
    """Write the parameters as a safetensors file."""
    save_file({name: np.ascontiguousarray(getattr(rejection, name), np.float32) for name in NAMES}, path)


def read_rejection(path: Path) -> Rejection:
    """The parameters in a file. Raises ModelError when it is damaged, lacks one, or they do not fit each other."""
    try:
        found: Mapping[str, NDArray[np.float32]] = load_file(path)
        parts = {name: np.asarray(found[name], np.float32) for name in NAMES}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: is not a safetensors file ({error}); install the model again") from error
    except KeyError as error:
        raise ModelError(f"{path}: {error} is missing; install the model again") from None
    d = len(parts["weight"])
    shapes = {"weight": (d,), "mean": (d,), "basis": (d, parts["basis"].shape[-1]), "middle": (2,), "tail": (2,)}
    for name, shape in shapes.items():
        if parts[name].shape != shape or not np.isfinite(parts[name]).all():
            raise ModelError(f"{path}: {name} is not of shape {shape} or holds what is no number; install the model again")
    if not (parts["tail"] > parts["middle"]).all():
        raise ModelError(f"{path}: tail must lie above middle; install the model again")
    return Rejection(**parts)
