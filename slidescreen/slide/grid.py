"""Working grids: a level, reduced by a whole factor, so that the stages see the um/px they were made for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np

from slidescreen.geometry import Box, Size
from slidescreen.slide.slide import Pixels, Slide

READ_SIDE: Final = 2048
GAP: Final = 6.0
"""Levels further apart leave scales between them that no level is near to."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Pixels of `level` averaged `factor` x `factor`. `downsample`: level-0 px per grid px. `size` in grid px; columns and
    rows left over at the right and bottom (fewer than `factor` level px) are part of the last grid px. `reduction`: how much of
    the factor the decoder does; the rest is averaged here."""

    level: int
    factor: int
    size: Size
    downsample: float
    reduction: int = 1


def choose_grid(slide: Slide, downsample: float) -> Grid:
    """The grid nearest in scale (as a ratio) to `downsample` level-0 px per px.

    Where no low level is near and the decoder can reduce, the factors are powers of 2, as though the levels were there.
    """
    level = min(range(len(slide.levels)), key=lambda i: abs(math.log(slide.levels[i].downsample / downsample)))
    if slide.levels[level].downsample > 1.5 * downsample and level > 0:
        level -= 1
    chosen = slide.levels[level]
    factor = max(1, round(downsample / chosen.downsample))
    factor = min(factor, chosen.size.width, chosen.size.height)
    reduction = 1
    if factor > 1 and slide.reductions(level) and _next_is_far(slide, level):
        factor = 2 ** max(1, round(math.log2(downsample / chosen.downsample)))
        reduction = max((r for r in slide.reductions(level) if factor % r == 0), default=1)
    size = Size(-(-chosen.size.width // factor), -(-chosen.size.height // factor))
    return Grid(level, factor, size, chosen.downsample * factor, reduction)


def _next_is_far(slide: Slide, level: int) -> bool:
    coarser = [other.downsample for other in slide.levels if other.downsample > slide.levels[level].downsample]
    return not coarser or min(coarser) > GAP * slide.levels[level].downsample


def read_grid(slide: Slide, grid: Grid, box: Box) -> Pixels:
    """Pixels of `box`, in grid px and inside the grid. Reads in pieces, so that memory does not grow with the factor."""
    if grid.factor == grid.reduction:
        return slide.read_pixels(box, grid.level, grid.reduction)
    rgb = np.empty((box.height, box.width, 3), np.uint8)
    state = np.empty((box.height, box.width), np.uint8)
    step = max(1, READ_SIDE // (grid.factor // grid.reduction))
    for y in range(0, box.height, step):
        for x in range(0, box.width, step):
            w, h = min(step, box.width - x), min(step, box.height - y)
            part = _reduced(slide, grid, Box(box.x + x, box.y + y, w, h))
            rgb[y : y + h, x : x + w] = part.rgb
            state[y : y + h, x : x + w] = part.state
    return Pixels(rgb, state)


def _reduced(slide: Slide, grid: Grid, box: Box) -> Pixels:
    k = grid.factor // grid.reduction
    source = Box(box.x * k, box.y * k, box.width * k, box.height * k)
    level = slide.levels[grid.level].size
    inside = source.intersect(Box(0, 0, -(-level.width // grid.reduction), -(-level.height // grid.reduction)))
    pixels = slide.read_pixels(inside, grid.level, grid.reduction)
    rgb, state = pixels.rgb, pixels.state
    if inside != source:  # the last grid px averages fewer level px: repeat the border, do not mix in white
        border = ((0, source.height - inside.height), (0, source.width - inside.width))
        rgb = np.pad(rgb, (*border, (0, 0)), mode="edge")
        state = np.pad(state, border, mode="edge")
    small = cv2.resize(rgb, (box.width, box.height), interpolation=cv2.INTER_AREA)
    worst = state.reshape(box.height, k, box.width, k).max((1, 3))
    return Pixels(np.asarray(small, np.uint8), worst)
