"""Sums over blocks of the scan: what is stained, how darkly, how sharply. Pure image -> numbers.

Densities are optical densities above the ground in sight (see `_ground`). Red cells absorb blue and green and little red;
nuclei absorb red most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from slidescreen.records import RgbImage
from slidescreen.slide import Pixels, PixelState

GROUND_REACH_UM: Final = 14.0
DARKEST_GROUND: Final = 0.7
"""Ground is taken to be no darker than this share of the scan's glass: in a thick area no ground is in sight."""
STAINED: Final = 0.5
OVERLAP: Final = 1.5
PALLOR: Final = 0.2
"""A px is stained from half of a typical red cell's density on, of overlapping cells from 1.5; pallor is a dip by 0.2."""
FAINT_OD: Final = 0.07
"""Any px denser than this in some channel is not glass."""
NUCLEAR_OD: Final = 0.3
NUCLEAR_RATIO: Final = 1.6
"""Nuclear px absorb red: at least 0.3 OD, and 1.6 times as much as blue."""
OPAQUE_OD: Final = 0.9
RED_CELL_BLUE_OD: Final = 0.2
"""Where no typical red cell can be measured."""
REBLUR_PX: Final = 1.0

COUNTS: Final = ("scanned", "unscanned", "unreadable", "faint", "stained", "nuclear", "overlap", "pallor", "opaque")
SUMS: Final = (*COUNTS, "sharp", "reblurred")

_Floats = NDArray[np.float32]
_LOG: Final = np.log(np.arange(256, dtype=np.float32) + 1)


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What the scan's colours are measured to be: `glass` (3,) RGB, `red_cell`: blue OD of a typical red cell."""

    glass: NDArray[np.float32]
    red_cell: float


def measure_look(samples: list[NDArray[np.uint8]]) -> Look:
    """From samples of the scan, each (n, 3) uint8 RGB px at about 1 um/px. Glass: the 90th percentile of what is lightest in
    each sample."""
    samples = [s for s in samples if len(s)]
    if not samples:
        return Look(np.full(3, 255, np.float32), RED_CELL_BLUE_OD)
    light = [np.percentile(s, 95, axis=0) for s in samples]
    glass = np.percentile(light, 90, axis=0).astype(np.float32)
    densities = []
    for sample, ground in zip(samples, light, strict=True):
        density = np.log(np.maximum(ground, DARKEST_GROUND * glass) + 1) - _LOG[sample]
        densities.append(density[(density[:, 2] > 0.08) & (density[:, 0] < NUCLEAR_RATIO * density[:, 2])][:, 2])
    stained = np.concatenate(densities)
    return Look(glass, float(np.clip(np.median(stained), 0.1, 0.5)) if len(stained) > 200 else RED_CELL_BLUE_OD)


def block_sums(pixels: Pixels, side: int, um_per_px: float, look: Look) -> NDArray[np.float32]:
    """(len(SUMS), rows, columns): px counted and gradient energies added up, per block of `side` px; blocks cut by the
    image's border hold what is there."""
    unseen = pixels.state != PixelState.SCANNED
    density = _ground(pixels.rgb, um_per_px, look) - _LOG[pixels.rgb]
    density[unseen] = 0
    red, green, blue = (density[..., i] for i in range(3))
    nuclear = (red > NUCLEAR_OD) & (red > NUCLEAR_RATIO * blue)
    stained = (blue > STAINED * look.red_cell) | nuclear
    ring = max(3, 2 * round(2.5 / um_per_px) + 1)
    closed = cv2.morphologyEx(blue, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (ring, ring)))
    sharp, reblurred = _gradients(np.ascontiguousarray(green + blue), unseen)
    layers: tuple[NDArray[np.generic], ...] = (
        ~unseen,
        pixels.state == PixelState.UNSCANNED,
        pixels.state == PixelState.UNREADABLE,
        density.max(axis=2) > FAINT_OD,
        stained,
        nuclear,
        stained & ~nuclear & (blue > OVERLAP * look.red_cell),
        (closed > 0.6 * look.red_cell) & (closed - blue > PALLOR * look.red_cell) & ~nuclear,
        (density.mean(axis=2) > OPAQUE_OD) | (nuclear & (red > OPAQUE_OD)),
        sharp,
        reblurred,
    )
    return np.stack([sum_blocks(layer, side) for layer in layers])


def sum_blocks(layer: NDArray[np.generic], side: int) -> NDArray[np.float32]:
    """(h, w) -> (rows, columns): sums over blocks of `side` px, the last ones cut by the border."""
    rows, columns = (-(-length // side) for length in layer.shape)
    padded = np.zeros((rows * side, columns * side), np.float32)
    padded[: layer.shape[0], : layer.shape[1]] = layer
    return np.asarray(padded.reshape(rows, side, columns, side).sum((1, 3)), np.float32)


def fill_colour(pixels: Pixels) -> NDArray[np.bool_]:
    """(h, w): px of pure black or white, with which scanners fill what they did not scan."""
    darkest, lightest = pixels.rgb.min(axis=2), pixels.rgb.max(axis=2)
    return np.asarray((darkest == 255) | (lightest == 0))


def _ground(rgb: RgbImage, um_per_px: float, look: Look) -> _Floats:
    """(h, w, 3) log of the lightest colour within 14 um, not darker than 70 % of the scan's glass."""
    height, width = rgb.shape[:2]
    coarse = max(1, round(4 / um_per_px))
    size = (math.ceil(width / coarse), math.ceil(height / coarse))
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    side = 2 * max(1, round(GROUND_REACH_UM / (coarse * um_per_px))) + 1
    lightest = cv2.blur(cv2.dilate(small, np.ones((side, side), np.uint8)), (side, side)).astype(np.float32)
    bounded = np.clip(lightest, DARKEST_GROUND * look.glass, np.maximum(look.glass, lightest.min()))
    ground = cv2.resize(bounded.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(np.log(ground + 1), np.float32)


def _gradients(density: _Floats, unseen: NDArray[np.bool_]) -> tuple[_Floats, _Floats]:
    """Squared gradients per px, as the image is and after a blur of 1 px; nil beside px that were not seen."""
    hidden = cv2.dilate(unseen.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    energies = []
    for image in (density, cv2.GaussianBlur(density, (0, 0), REBLUR_PX)):
        energy = np.zeros_like(density)
        energy[:, :-1] += np.square(np.diff(image, axis=1))
        energy[:-1] += np.square(np.diff(image, axis=0))
        energy[hidden] = 0
        energies.append(energy)
    return energies[0], energies[1]
