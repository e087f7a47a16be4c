"""What the colours of one body say: where its nucleus ends, and whether it is stained at all."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from slidescreen.records import RgbImage

SURE: Final = 0.4
"""Logits further from 0 than this, chances above 0.6 and below 0.4, tell what nucleus and cytoplasm look like."""
LEAST_PX: Final = 10
"""Fewer px of nucleus or of cytoplasm tell nothing of its colour."""
SPREAD: Final = 1e-3
"""Added to the variances of optical density: cells of a painted image have none."""
FURTHEST: Final = 6.0
"""Limit of what the colour of a px says, as a logit."""
DENSITY: Final = -np.log(np.arange(256, dtype=np.float32) + 4)
"""Optical density of each value of a px, up to a constant."""
FAINT: Final = 0.1
"""Optical density below which a body has no colour to speak of."""

FloatMap = NDArray[np.float32]


def by_colour(logits: FloatMap, body: NDArray[np.bool_], image: RgbImage) -> FloatMap:
    """Logits of nucleus (h, w), half the network's and half what the colours of this very body say.

    Within `body` (h, w) of `image` (h, w, 3), px of which the network is sure give the colours of nucleus and cytoplasm;
    Fisher's linear discriminant between their optical densities judges each px. The network alone draws nuclei too small on
    one camera and too large on the next. Where either is hardly seen, the network's logits as they are.
    """
    places = np.flatnonzero(body)
    known = logits.reshape(-1)[places]
    nucleus, cytoplasm = known > SURE, known < -SURE
    if min(np.count_nonzero(nucleus), np.count_nonzero(cytoplasm)) < LEAST_PX:
        return logits
    density = DENSITY[image.reshape(-1, 3)[places]]
    dark, pale = density[nucleus], density[cytoplasm]
    middle_dark, middle_pale = dark.mean(0), pale.mean(0)
    spread = (_covariance(dark - middle_dark) + _covariance(pale - middle_pale)) / 2 + SPREAD * np.eye(3)
    direction = np.linalg.solve(spread, middle_dark - middle_pale).astype(np.float32)
    says = np.einsum("ni,i->n", density - (middle_dark + middle_pale) / 2, direction)
    told = logits.copy()
    told.reshape(-1)[places] = (known + np.clip(says, -FURTHEST, FURTHEST)) / 2
    return told


def neutrality(pixels: NDArray[Any], around: NDArray[Any]) -> float:
    """The least of three channels' optical densities as a share of the greatest: 1 for grey and black, whatever the light; 99 %
    of stained nuclei of all sources at hand lie below 0.5, the rest below 0.75.

    `pixels`, `around` (n, 3) uint8: of the body, and of what lies around it, whose lightest tenth is the glass. 0 where there
    are none or the body is hardly darker than the glass.
    """
    if not len(pixels) or not len(around):
        return 0.0
    place = round(0.9 * (len(around) - 1))
    glass = np.partition(around, place, axis=0)[place]
    density = DENSITY[pixels].mean(0) - DENSITY[glass]
    return float(max(0.0, density.min()) / density.max()) if density.max() > FAINT else 0.0


def _covariance(away: FloatMap) -> NDArray[np.float32]:
    """Of (n, 3); without BLAS, whose threads cost more than they do here."""
    return np.asarray(np.einsum("ni,nj->ij", away, away) / max(1, len(away) - 1), np.float32)
