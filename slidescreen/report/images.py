"""Pixels -> JPEG data URIs within a byte budget, so that the file can be sent by mail."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

THUMBNAIL_BUDGET: Final = 4_900_000
"""Bytes of JPEG for all gallery tiles together (a third more as base64)."""

LARGE_BUDGET: Final = 700_000
"""Bytes of JPEG for the enlarged pictures of the cells most likely to be blasts."""

OVERLAY_BUDGET: Final = 400_000
"""Bytes of JPEG for the overlays of what the scores are sensitive to."""
OVERLAY_SIDE: Final = 240

LARGE_SIDE: Final = 320
SIDES: Final = ((380, 320), (600, 240), (850, 200))
"""(most tiles, side in px): the fewer tiles, the finer. Stained cells take about 11, 7, 5.5 kB each; 4 kB at 160 px."""
SMALLEST_SIDE: Final = 160

QUALITIES: Final = (80, 70, 60, 45, 30, 15, 5)
"""JPEG qualities tried in turn until the budget holds; real smears keep the first."""


class PatchSource(Protocol):
    """Indexable by cell: (400, 400, 3) uint8 RGB. A list of arrays, one array, or a zarr array read piece by piece."""

    def __getitem__(self, index: int, /) -> Any: ...


def thumbnail_side(tiles: int) -> int:
    """Side in px that fits `tiles` pictures into the budget."""
    return next((side for most, side in SIDES if tiles <= most), SMALLEST_SIDE)


def thumbnails(
    patches: PatchSource, shown: Iterable[int], enlarged: frozenset[int]
) -> tuple[Mapping[int, str], Mapping[int, str]]:
    """Data URIs per cell index: those of the tiles, and larger ones of the cells in `enlarged`.

    Every patch is read once, in ascending order; no others are touched.
    """
    order = sorted(set(shown) | enlarged)
    side = thumbnail_side(len(order))
    small: dict[int, NDArray[np.uint8]] = {}
    large: dict[int, NDArray[np.uint8]] = {}
    for index in order:
        pixels = np.asarray(patches[index])
        small[index] = shrink(pixels, side)
        if index in enlarged and side < LARGE_SIDE:
            large[index] = shrink(pixels, LARGE_SIDE)
    return data_uris(small, THUMBNAIL_BUDGET), data_uris(large, LARGE_BUDGET)


def overlays(patches: PatchSource, maps: Mapping[int, NDArray[np.uint8]], shown: frozenset[int]) -> Mapping[int, str]:
    """Data URIs of the overlays, per cell index, of those cells in `shown` that have a map."""
    drawn = {i: shrink(overlay(np.asarray(patches[i]), maps[i]), OVERLAY_SIDE) for i in sorted(shown & maps.keys())}
    return data_uris(drawn, OVERLAY_BUDGET)


def overlay(rgb: NDArray[np.uint8], sensitivity: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture (h, w, 3) in pale grey under the map (h, w) uint8 in viridis, opaque where the map is high.

    Viridis grows evenly in lightness and reads the same to colour-blind eyes; the grey leaves all colour to the map.
    """
    grey = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY).astype(np.float32)[..., None]
    colour = cv2.applyColorMap(np.ascontiguousarray(sensitivity), cv2.COLORMAP_VIRIDIS)[..., ::-1]
    opacity = np.minimum(1, sensitivity.astype(np.float32) / 140)[..., None]
    return np.asarray(np.round(grey * (1 - opacity) + colour * opacity), np.uint8)


def shrink(rgb: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    """`rgb` with its longer side at most `longest` px; unchanged where it is small enough."""
    height, width = rgb.shape[:2]
    factor = longest / max(height, width)
    if factor >= 1:
        return np.ascontiguousarray(rgb)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(cv2.resize(np.ascontiguousarray(rgb), size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def data_uris(pictures: Mapping[int, NDArray[np.uint8]], budget: int) -> dict[int, str]:
    """All pictures at the best one quality at which their bytes fit `budget` (or the lowest quality there is)."""
    encoded: dict[int, bytes] = {}
    for quality in QUALITIES:
        encoded = {key: _jpeg(picture, quality) for key, picture in pictures.items()}
        if sum(map(len, encoded.values())) <= budget:
            break
    return {key: "data:image/jpeg;base64," + base64.b64encode(data).decode() for key, data in encoded.items()}


def _jpeg(rgb: NDArray[np.uint8], quality: int) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    return cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)[1].tobytes()
