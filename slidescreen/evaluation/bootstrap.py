"""Which images are resampled together, how often, and the intervals that follow.

A unit is a patient with all its images, or an image whose patient is unknown. Units are drawn with replacement within their
stratum - the patients of a source, or the single images of a source - so that no source comes and goes between resamples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from slidescreen.evaluation.metrics import Floats, Ints

RESAMPLES: Final = 1000
SEED: Final = 20190912
AT_ONCE: Final = 50
"""Resamples held in memory together: 7 MB for 18,000 images."""

FEWEST_UNITS: Final = 5
"""Fewer units say nothing of how much units differ: no interval is given."""
FEWEST_DEFINED: Final = 0.9
"""Share of the resamples in which a measure must be defined for an interval to be given."""


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """`unit`: (n,) the unit of each image, numbered from 0. `stratum`: (units,) the stratum of each unit, numbered from 0.
    `patients`: how many units are patients; the others are single images."""

    unit: Ints
    stratum: Ints
    patients: int

    def __len__(self) -> int:
        return len(self.stratum)

    def among(self, images: NDArray[np.bool_]) -> int:
        """Number of units that hold at least one of the images, (n,) bool."""
        return len(np.unique(self.unit[images]))


def group_units(source: NDArray[np.str_], patient: NDArray[np.str_]) -> Units:
    """Units of images with the given sources and patients, (n,) each; patient ids count within their source."""
    keys: dict[tuple[str, str, int], int] = {}
    strata: dict[tuple[str, bool], int] = {}
    unit, stratum = [], []
    for i, (s, p) in enumerate(zip(source.tolist(), patient.tolist(), strict=True)):
        key = (s, p, -1) if p else (s, "", i)
        if key not in keys:
            keys[key] = len(keys)
            stratum.append(strata.setdefault((s, bool(p)), len(strata)))
        unit.append(keys[key])
    return Units(np.array(unit), np.array(stratum), sum(bool(p) for _, p, _ in keys))


def resample(units: Units, resamples: int = RESAMPLES, seed: int = SEED) -> Iterator[Floats]:
    """(up to 50, n) at a time, `resamples` rows in all: how often each image counts."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(units.stratum == s) for s in np.unique(units.stratum)]
    for start in range(0, resamples, AT_ONCE):
        rows = min(AT_ONCE, resamples - start)
        counts = np.zeros((rows, len(units)))
        for those in members:
            drawn = rng.integers(0, len(those), (rows, len(those))) + np.arange(rows)[:, None] * len(those)
            counts[:, those] = np.bincount(drawn.ravel(), minlength=rows * len(those)).reshape(rows, -1)
        yield counts[:, units.unit]


def interval(resampled: Floats) -> tuple[float, float] | None:
    """95 % percentile interval of (resamples,) values; None where too few are defined, or where they are all the same, which
    says that resampling cannot tell, not that the measure is certain."""
    defined = resampled[~np.isnan(resampled)]
    if not len(defined) or len(defined) < FEWEST_DEFINED * len(resampled):
        return None
    low, high = (float(q) for q in np.quantile(defined, [0.025, 0.975]))
    return None if np.ptp(defined) < 1e-12 else (low, high)
