"""How a slide looks, in three numbers by which it can be compared with the others of its batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from slidescreen.records import Overview, Quality, ScreenedCell

GROUND_PERCENTILE: Final = 90
"""Of each channel in the screened area: glass and plasma between the red cells."""
LEAST_DENSITY: Final = 1e-3


def measure_quality(overview: Overview, cells: Sequence[ScreenedCell]) -> Quality:
    """Focus of the typed cells, density and tint of the stain in the screened area of the overview."""
    focus = [c.cell.focus for c in cells if c.status == "typed" and c.cell.focus is not None]
    density = _density(overview)
    return Quality(
        focus=float(np.median(focus)) if focus else None,
        stain=None if density is None else float(density.mean()),
        tint=None if density is None else float(np.log2(density[1] / density[0])),
    )


def _density(overview: Overview) -> np.ndarray[tuple[int], np.dtype[np.float64]] | None:
    """Mean optical density per channel, (3,) R G B, or None where nothing was screened."""
    pixels = overview.image[overview.screened].astype(np.float64)
    if not len(pixels):
        return None
    ground = np.percentile(pixels, GROUND_PERCENTILE, axis=0)
    densities = -np.log10((pixels + 1) / (ground + 1))
    mean: np.ndarray[tuple[int], np.dtype[np.float64]] = np.maximum(densities.mean(axis=0), LEAST_DENSITY)
    return mean
