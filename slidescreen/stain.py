"""What the colours of one body say: where its nucleus ends, and whether it is stained at all."""

from __future__ import annotations

from typing import Any, Final

import cv2
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
DENSITY: Final = np.rint(-256 * np.log(np.arange(256) + 4.0)) / 256
"""Optical density of each value of a px, up to a constant; in whole 256ths, so that sums of them and of their products are
exact and do not depend on the order in which they are added up."""
FAINT: Final = 0.1
"""Optical density below which a body has no colour to speak of."""

FloatMap = NDArray[np.float32]
Densities = NDArray[np.float64]


def by_colour(logits: FloatMap, body: NDArray[np.bool_], image: RgbImage) -> FloatMap:
    """Logits of nucleus (h, w), half the network's and half what the colours of this very body say.

    Within `body` (h, w) of `image` (h, w, 3), px of which the network is sure give the colours of nucleus and cytoplasm;
    Fisher's linear discriminant between their optical densities judges each px. The network alone draws nuclei too small on
    one camera and too large on the next. Where either is hardly seen, the network's logits as they are.
    """
    density = _density(image)
    nucleus, cytoplasm = _within(body & (logits > SURE), density), _within(body & (logits < -SURE), density)
    if min(len(nucleus), len(cytoplasm)) < LEAST_PX:
        return logits
    dark, pale = _mean(nucleus), _mean(cytoplasm)
    spread = (_covariance(nucleus, dark) + _covariance(cytoplasm, pale)) / 2 + SPREAD * np.eye(3)
    red, green, blue = cv2.solve(spread, (dark - pale)[:, None])[1].ravel().tolist()
    middle = (dark + pale) / 2
    says = red * (density[:, 0] - middle[0]) + green * (density[:, 1] - middle[1]) + blue * (density[:, 2] - middle[2])
    told = (logits + np.clip(says, -FURTHEST, FURTHEST).reshape(logits.shape)) / 2
    return np.where(body, told, logits).astype(np.float32)


def neutrality(image: RgbImage, body: NDArray[np.bool_], around: NDArray[Any]) -> float:
    """The least of three channels' optical densities as a share of the greatest: 1 for grey and black, whatever the light; 99 %
    of stained nuclei of all sources at hand lie below 0.5, the rest below 0.75.

    Of the px `body` (h, w) of `image` (h, w, 3); the lightest tenth of `around` (n, 3), uint8, is the glass. 0 where either is
    empty or the body is hardly darker than the glass.
    """
    seen = np.count_nonzero(body)
    if not seen or not len(around):
        return 0.0
    place = round(0.9 * (len(around) - 1))
    glass = np.partition(around, place, axis=0)[place]
    density = body.ravel().astype(np.float64) @ _density(image) / seen - DENSITY[glass]
    return float(max(0.0, density.min()) / density.max()) if density.max() > FAINT else 0.0


def _density(image: NDArray[Any]) -> Densities:
    """(..., 3) uint8 -> (n, 3)."""
    return np.asarray(cv2.LUT(image.reshape(-1, 1, 3), DENSITY), np.float64).reshape(-1, 3)


def _within(mask: NDArray[np.bool_], density: Densities) -> Densities:
    return np.asarray(np.compress(mask.ravel(), density, axis=0), np.float64)


def _mean(density: Densities) -> Densities:
    return np.asarray(np.ones(len(density)) @ density / len(density))


def _covariance(density: Densities, mean: Densities) -> Densities:
    return np.asarray((density.T @ density - len(density) * np.outer(mean, mean)) / max(1, len(density) - 1))
