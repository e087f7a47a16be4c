"""Tiles of the working grid that cover the screened area."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from slidescreen.geometry import Box, um_to_px
from slidescreen.records import AreaMap, Scale, Tile
from slidescreen.slide import Grid

TILE_PX: Final = 1536


@dataclass(frozen=True, slots=True)
class Tiling:
    """How the working grid is cut: tiles of `side` grid px, moved by `shift` grid px to the left and up."""

    side: int = TILE_PX
    shift: int = 0


def cut_tiles(
    grid: Grid, area: AreaMap, halo_um: float, scale: Scale, *, side: int = TILE_PX, shift: int = 0, lattice: int = 1
) -> Iterator[Tile]:
    """Tiles of `side` grid px, row by row, whose cores cover the grid once; tiles without a screened block are left out.

    `halo_um` is added around each core, on the left and above up to the next multiple of `lattice` px, so that windows start
    there, then clipped to the grid. `shift` moves the tiling by that many grid px to the left and
    up: cells must not depend on it.
    """
    halo = math.ceil(um_to_px(halo_um, scale.um_per_px * grid.downsample))
    whole = Box(0, 0, grid.size.width, grid.size.height)
    for y in range(-(shift % side), grid.size.height, side):
        for x in range(-(shift % side), grid.size.width, side):
            core = Box(x, y, side, side).intersect(whole)
            if _touches_screened(area, core, grid.downsample):
                yield Tile(core, _window(core, halo, lattice).intersect(whole))


def _window(core: Box, halo: int, lattice: int) -> Box:
    x, y = ((start - halo) // lattice * lattice for start in (core.x, core.y))
    return Box(x, y, core.right + halo - x, core.bottom + halo - y)


def _touches_screened(area: AreaMap, core: Box, downsample: float) -> bool:
    per_block = area.block_px / downsample
    rows = slice(int(core.y / per_block), math.ceil(core.bottom / per_block))
    columns = slice(int(core.x / per_block), math.ceil(core.right / per_block))
    return bool(area.screened_blocks[rows, columns].any())
