"""The Protocol that every engine keeps to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Outputs(NamedTuple):
    """What a network says of n patches. `logits`: (n, 15) float32, columns in the order of the card's classes, as the network
    gives them. `features`: (n, d) float32, what its last dense layer is given (pooled over the picture)."""

    logits: NDArray[np.float32]
    features: NDArray[np.float32]


def joined(parts: Sequence[Outputs], classes: int = 15) -> Outputs:
    """Outputs one after the other; none at all are (0, 15) and (0, 0)."""
    if not parts:
        return Outputs(np.zeros((0, classes), np.float32), np.zeros((0, 0), np.float32))
    return Outputs(*(np.concatenate(each) for each in zip(*parts, strict=True)))


class Engine(Protocol):
    """Runs one network. `name` tells what with and how exactly ("torch float32"); `device` where ("cpu", "cuda:0")."""

    @property
    def name(self) -> str: ...

    @property
    def device(self) -> str: ...

    @property
    def batch_size(self) -> int:
        """As many patches at once as suit it; any number may be given."""
        ...

    def run(self, patches: NDArray[np.uint8]) -> Outputs:
        """(n, 400, 400, 3) uint8 RGB, any n -> rows in the same order, each as it would be alone."""
        ...
