"""Slide, cells -> Iterator[Patch]: 400 x 400 px = 29 um around each cell, as Matek et al. 2019 cut them.

Cells are taken in groups, read in the order of the file, so that neighbours share the scan's blocks while these are in the
slide's cache, and handed on in the order in which they came; nothing is held here but one group.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Final

import cv2
import numpy as np

from slidescreen.geometry import Box, Point
from slidescreen.records import PATCH_PX, PATCH_UM, Cell, Patch, RgbImage, Scale
from slidescreen.slide import Pixels, PixelState, Slide

UM_PER_PX: Final = PATCH_UM / PATCH_PX
GROUP_PX: Final = 64 * PATCH_PX**2
"""Px of the cells that are read together: 64 cells at 0.0725 um/px, 40 MB."""
LEVEL_TOLERANCE: Final = 1.02
"""A level up to 2 % coarser than 0.0725 um/px still counts as fine enough."""


def patch_level(slide: Slide, scale: Scale) -> int:
    """The coarsest level that still has all the detail of 0.0725 um/px; level 0 where none has."""
    fine = [i for i, level in enumerate(slide.levels) if scale.um_per_px * level.downsample <= LEVEL_TOLERANCE * UM_PER_PX]
    return max(fine, key=lambda i: slide.levels[i].downsample, default=0)


def cut_patches(slide: Slide, cells: Iterable[Cell], scale: Scale) -> Iterator[Patch]:
    """The patch of every cell, in the order of the cells. Pixels beyond the scan are white.

    A cell with px that cannot be decoded within its own box comes out refused ("unreadable pixels").
    """
    level = patch_level(slide, scale)
    downsample = slide.levels[level].downsample
    side = max(1, round(PATCH_UM / (scale.um_per_px * downsample)))
    waiting = iter(cells)
    while group := list(islice(waiting, max(1, GROUP_PX // side**2))):
        regions = [Box.around(Point(c.centre.x / downsample, c.centre.y / downsample), side) for c in group]
        for cell, region, pixels in zip(group, regions, slide.read_many(regions, level), strict=True):
            yield Patch(_judged(cell, region, pixels, downsample), resample(pixels.rgb))


def _judged(cell: Cell, region: Box, pixels: Pixels, downsample: float) -> Cell:
    """The cell, refused where px within its own box cannot be decoded."""
    if cell.countable and pixels.state.max() == PixelState.UNREADABLE:
        own = _scaled(cell.box, downsample).intersect(region)
        near = pixels.state[own.y - region.y : own.bottom - region.y, own.x - region.x : own.right - region.x]
        if near.size and near.max() == PixelState.UNREADABLE:
            return replace(cell, refusal="unreadable pixels")
    return cell


def resample(square: RgbImage) -> RgbImage:
    """A square of 29 um, (s, s, 3) uint8 of any s -> (400, 400, 3): averaging areas when it shrinks, cubic when it grows."""
    if square.shape[0] == PATCH_PX:
        return square
    method = cv2.INTER_AREA if square.shape[0] > PATCH_PX else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(square, (PATCH_PX, PATCH_PX), interpolation=method), np.uint8)


def patch_of_image(image: RgbImage, um_per_px: float) -> RgbImage:
    """The central 29 um of an image of one cell, (h, w, 3) uint8 -> (400, 400, 3); white where the image is smaller."""
    side = max(1, round(PATCH_UM / um_per_px))
    height, width = image.shape[:2]
    box = Box.around(Point(width / 2, height / 2), side)
    inside = box.intersect(Box(0, 0, width, height))
    square = np.full((side, side, 3), 255, np.uint8)
    square[inside.y - box.y : inside.bottom - box.y, inside.x - box.x : inside.right - box.x] = image[
        inside.y : inside.bottom, inside.x : inside.right
    ]
    return resample(square)


def _scaled(box: Box, downsample: float) -> Box:
    return Box(
        int(box.x // downsample),
        int(box.y // downsample),
        max(1, round(box.width / downsample)),
        max(1, round(box.height / downsample)),
    )
