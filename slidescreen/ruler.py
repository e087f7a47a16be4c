"""Slide -> um per px by its red cells, which are 7-8 um wide in everybody's blood. Knows nothing of the stated scale.

Round bodies are measured at five magnifications, each an octave of diameters in level-0 px, so that a red cell is 13-26 px
wide at one of them whatever the scan's scale. Bodies are outlined in the blue channel: haemoglobin absorbs blue as strongly
as nuclei do, so that one threshold takes both, and platelets stay pale. What absorbs red much more than blue is a nucleus and
left out. Of what is left the red cells are the mode: no other round body covers as much of a smear.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from slidescreen.geometry import Box
from slidescreen.records import RgbImage, RulerReading
from slidescreen.slide import Grid, PixelState, Slide, choose_grid, read_grid

RED_CELL_UM: Final = 7.5
"""Mean diameter on a dried smear; its limits across people are `NARROW_UM` and `WIDE_UM`."""
NARROW_UM: Final = 7.0
WIDE_UM: Final = 8.0

MIN_CELLS: Final = 30
"""With fewer isolated red cells there is no reading."""
ENOUGH_CELLS: Final = 400
OCTAVES: Final = (1, 2, 4, 8, 16)
"""Level-0 px per px looked at; red cells of 6 to 416 level-0 px."""
LEAST_PX, MOST_PX = 13.0, 26.0
FINEST_PX: Final = 6.0
"""Diameters taken at each octave, in its px; at the first one down to `FINEST_PX`."""
WINDOW_PX: Final = 512
MAX_WINDOWS: Final = 40
MAX_LEVEL_PX: Final = 48_000_000
"""Most px of a level decoded per octave: what bounds the cost on a scan without pyramid."""

MIN_BLUE_OD: Final = 0.04
"""Fainter edges are noise."""
NUCLEAR_RATIO: Final = 1.6
"""Optical density of red over blue: red cells measure 0.4-1.5 on four cameras, leukocytes 1.8-3."""
MOST_RED_OD: Final = 0.65
"""Darker bodies are nuclei or precipitate."""
MIN_SOLIDITY: Final = 0.93
MIN_ASPECT: Final = 0.66
"""A body's area over its convex hull's, its shorter axis over its longer: less is not one round cell."""
MODE_WIDTH: Final = 0.22
"""Cells within this share of the mode's diameter are its cells."""
MIN_SHARE: Final = 0.4
"""Least share of the area of all round bodies that the mode's cells make up."""
MIN_COVER: Final = 0.005
"""Least share of the area looked at that the mode's cells cover: fewer are no smear but specks. Composed smears: 1-8 %."""

FOOT: Final = 0.24
"""A cell's edge is where blue reaches this share of its rim's density: chosen on training fields of four cameras, so that
isolated cells come out as wide as boxes drawn by hand around them."""

_DENSITY: Final = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)
"""Optical density against white of a channel's 256 levels."""

_Sizes = NDArray[np.float64]
_Densities = NDArray[np.float32]


def measure_scale(slide: Slide) -> RulerReading | None:
    """The scale by red cells, or None where fewer than 30 isolated ones are found. The same for the same scan.

    `low` and `high` allow for mean diameters of 7 and 8 um and, at 95 %, for the number of cells measured.
    """
    found = [_octave(slide, octave) for octave in OCTAVES]
    diameter = np.concatenate([sizes for sizes, _ in found])
    weight = np.concatenate([np.full(len(sizes), 1 / area) for sizes, area in found])
    cover = np.square(diameter) * weight
    mode = _mode(diameter, cover)
    if mode is None:
        return None
    near = np.abs(np.log(diameter / mode)) < MODE_WIDTH
    cells = diameter[near]
    covered = float(cover[near].sum())
    if len(cells) < MIN_CELLS or covered < max(MIN_COVER * 4 / math.pi, MIN_SHARE * float(cover.sum())):
        return None
    middle = _median(cells, weight[near])
    error = 1.96 * 1.2533 * float(cells.std()) / math.sqrt(len(cells))  # 1.2533: standard error of a median
    return RulerReading(RED_CELL_UM / middle, NARROW_UM / (middle + error), WIDE_UM / (middle - error), len(cells))


def _median(values: _Sizes, weight: _Sizes) -> float:
    """The value with half the weight on either side."""
    order = np.argsort(values, kind="stable")
    summed = np.cumsum(weight[order])
    return float(values[order][int(np.searchsorted(summed, summed[-1] / 2))])


def _mode(diameter: _Sizes, cover: _Sizes) -> float | None:
    """The diameter about which round bodies cover most; bodies of every octave count by the share of area they cover."""
    if not len(diameter):
        return None
    steps = np.arange(math.log(FINEST_PX), math.log(MOST_PX * OCTAVES[-1]), 0.02)
    near = np.exp(-0.5 * np.square((np.log(diameter)[None] - steps[:, None]) / 0.1))
    return math.exp(steps[int((near * cover).sum(1).argmax())])


def _octave(slide: Slide, octave: int) -> tuple[_Sizes, float]:
    """Diameters of the round bodies of one octave, in level-0 px, and the area of the windows that hold some."""
    grid = choose_grid(slide, octave)
    least, most = (value * octave / grid.downsample for value in (LEAST_PX if octave > 1 else FINEST_PX, MOST_PX))
    sizes: list[float] = []
    area = 1.0
    for box in _windows(grid):
        pixels = read_grid(slide, grid, box)
        unseen = pixels.state != PixelState.SCANNED
        bodies = [] if unseen.all() else round_bodies(pixels.rgb, unseen, least, most)
        if bodies:
            area += box.width * box.height * grid.downsample**2
        sizes += bodies
        if len(sizes) >= ENOUGH_CELLS:
            break
    return np.array(sizes) * grid.downsample, area


def _windows(grid: Grid) -> Iterator[Box]:
    """At most 40 squares spread over the grid, in an order that covers it evenly from the start; all where they are few."""
    whole = Box(0, 0, grid.size.width, grid.size.height)
    columns, rows = -(-whole.width // WINDOW_PX), -(-whole.height // WINDOW_PX)
    many = columns * rows
    most = max(1, min(many, MAX_WINDOWS, MAX_LEVEL_PX // (WINDOW_PX * grid.factor) ** 2))
    chosen = np.unique(((np.arange(most) + 0.5) * many / most).astype(int))
    order = np.argsort(np.modf(np.arange(len(chosen)) * 0.6180339887)[0], kind="stable")
    for index in chosen[order].tolist():
        corner = Box(index % columns * WINDOW_PX, index // columns * WINDOW_PX, WINDOW_PX, WINDOW_PX)
        yield corner.intersect(whole)


def round_bodies(rgb: RgbImage, unseen: NDArray[np.bool_], least: float, most: float) -> list[float]:
    """Diameters in px, from `least` to below `most`, of the isolated round bodies without nucleus in an image.

    `unseen` (h, w): px that were not scanned or not read.
    """
    density = np.asarray(cv2.GaussianBlur(_DENSITY[rgb], (0, 0), max(0.3, least / 14)), np.float32)
    ground, threshold = _local_levels(density, unseen, max(8, round(2 * most)))
    density -= ground
    stained = ((density[..., 2] > threshold) & ~unseen).astype(np.uint8)
    outlines, _ = cv2.findContours(stained, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    sizes = (_diameter(outline, density, least, most) for outline in outlines if len(outline) >= 8)
    return [size for size in sizes if size is not None]


def _local_levels(density: _Densities, unseen: NDArray[np.bool_], side: int) -> tuple[_Densities, _Densities]:
    """Density of the ground (h, w, 3), and the blue density above it (h, w) from which on a px is stained.

    Both are measured on squares of about `side` px, half overlapping, and interpolated: light and stain may vary.
    """
    height, width = unseen.shape
    planes = cv2.split(density)
    rows, columns = max(1, round(height / side)), max(1, round(width / side))
    ground = np.zeros((rows, columns, 3), np.float32)
    threshold = np.zeros((rows, columns), np.float32)
    for row, column in np.ndindex(rows, columns):
        y, x = row * height // rows, column * width // columns
        here = np.s_[
            max(0, y - side // 4) : y + height // rows + side // 4, max(0, x - side // 4) : x + width // columns + side // 4
        ]
        seen = ~unseen[here][::2, ::2]
        colours = [plane[here][::2, ::2].ravel() for plane in planes]
        if not seen.all():
            colours = [colour[seen.ravel()] for colour in colours]
        if len(colours[2]):
            levels = np.clip(colours[2] * 100, 0, 255).astype(np.uint8)
            otsu, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_OTSU)
            low = levels <= otsu
            if low.any() and not low.all():
                ground[row, column] = [_middle(colour[low]) for colour in colours]
                threshold[row, column] = _middle(colours[2][~low]) - ground[row, column, 2]
    typical = np.median(threshold[threshold > 0]) if threshold.any() else 0.0
    threshold = np.maximum(threshold, max(2 * MIN_BLUE_OD, float(typical) / 2)) / 2  # half-way up the edge of a cell
    size = (width, height)
    smooth = cv2.resize(ground, size, interpolation=cv2.INTER_LINEAR).reshape(height, width, 3)
    edges = cv2.resize(threshold, size, interpolation=cv2.INTER_LINEAR)
    return np.asarray(smooth, np.float32), np.asarray(edges, np.float32)


def _middle(values: NDArray[Any]) -> float:
    """`np.median` of some values, without what that takes for thousands of short arrays."""
    half = len(values) // 2
    parted = np.partition(values, half)
    return float(parted[half] if len(values) % 2 else (parted[:half].max() + parted[half]) / np.float32(2))


def _diameter(outline: Any, density: _Densities, least: float, most: float) -> float | None:
    """Diameter in px of the disc as large as the body, or None where it is no single red cell wholly in sight."""
    x, y, width, height = cv2.boundingRect(outline)
    inside = x > 1 and y > 1 and x + width < density.shape[1] - 1 and y + height < density.shape[0] - 1
    if not inside or max(width, height) > 1.5 * most or min(width, height) < 0.6 * least:
        return None
    area = cv2.contourArea(outline)
    size = math.sqrt(4 / math.pi * (area + cv2.arcLength(outline, True) / 2 + 1))  # the outline runs through px middles
    if not least <= size < most or area < MIN_SOLIDITY * cv2.contourArea(cv2.convexHull(outline)):
        return None
    axes = cv2.fitEllipse(outline)[1]
    if min(axes) < MIN_ASPECT * max(axes):
        return None
    reach = max(2, round(0.13 * size))
    left, top = max(0, x - reach), max(0, y - reach)
    around = density[top : y + height + reach, left : x + width + reach]
    body = np.zeros(around.shape[:2], np.uint8)
    cv2.drawContours(body, [outline - [left, top]], -1, 1, -1)
    red, _, blue = np.median(around[body > 0], axis=0)
    return None if red >= min(NUCLEAR_RATIO * blue, MOST_RED_OD) else _at_the_foot(around[..., 2], body, reach)


def _at_the_foot(blue: _Densities, body: NDArray[np.uint8], reach: int) -> float:
    """Diameter in px of a body measured where its edge rises from the ground, at most `reach` px outside its outline."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    rim = float(np.percentile(blue[body > 0], 75))
    stained = (cv2.dilate(body, disc) > 0) & (blue > FOOT * rim)
    inner = cv2.erode(body, np.ones((3, 3), np.uint8)) > 0
    return math.sqrt(4 / math.pi * int(np.count_nonzero(stained | inner)))
