"""The Protocol that every engine keeps to."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Outputs(NamedTuple):
    """What a network says of n patches. `logits`: (n, 15) float32, columns in the order of the card's classes, as the network
    gives them. `features`: (n, d) float32, what its last dense layer is given (pooled over the picture)."""

    logits: NDArray[np.float32]
    features: NDArray[np.float32]


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
