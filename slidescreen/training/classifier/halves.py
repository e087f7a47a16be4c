"""Validation images in two halves: what is fitted on one is measured on the other, and the other way round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Halves:
    """`second` (n,) bool: which half each image belongs to."""

    second: Bools

    def both(self) -> Iterator[tuple[Bools, Bools]]:
        """(fitted on, measured on), twice."""
        yield ~self.second, self.second
        yield self.second, ~self.second


def halve(groups: Sequence[str], seed: int = 0) -> Halves:
    """Deal images out to halves of about the same size, those of one group (patient, field) to the same: the largest groups
    first, each to the smaller half, in random order where equal."""
    names, member, sizes = np.unique(np.array(groups, dtype=str), return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    held = [0, 0]
    second = np.zeros(len(names), np.bool_)
    for i in order.tolist():
        second[i] = held[1] < held[0]
        held[int(second[i])] += int(sizes[i])
    return Halves(second[member])
