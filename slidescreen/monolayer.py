"""Slide -> which parts of the scan are screened, and tiles that cover them.

From a low level the scan is sorted, in blocks of about 32 um, into unscanned, empty glass, screened (stained) and
unreadable. Screening errs on the side of looking: a block is empty only when neither it nor a neighbour holds any
stain.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from slidescreen.errors import ReadError
from slidescreen.geometry import Box, Size, area_mm2, um_to_px
from slidescreen.records import Area, AreaMap, Overview, Scale, Tile
from slidescreen.slide import Grid, Pixels, PixelState, Slide, choose_grid, read_grid

AREA_UM_PER_PX: Final = 2.3
"""Red cells (7.5 um) still show as texture of about 3 px."""
BLOCK_UM: Final = 32.0
OVERVIEW_PX: Final = 1600
TILE_PX: Final = 1024
STAIN_CONTRAST: Final = 0.07
STAIN_DARKNESS: Final = 0.20
"""A block is stained when its lightness spans more than 7 % of the glass's, or lies 20 % below it."""


@dataclass(frozen=True, slots=True)
class MonolayerSettings:
    """`aoi`: auto leaves empty glass out, all screens everything scanned. `max_unreadable`: the share of the scan's area
    that may be undecodable before the slide fails, 0-1."""

    aoi: Literal["auto", "all"] = "auto"
    max_unreadable: float = 0.05


@dataclass(slots=True)
class _Blocks:
    """Per block: lightness of its 5th and 95th percentile and mean, of the scanned px, and px per state."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    mean: NDArray[np.float32]
    states: NDArray[np.int32]


def map_area(slide: Slide, scale: Scale, settings: MonolayerSettings) -> AreaMap:
    """Look at the whole scan once, from a low level, piece by piece.

    Raises ReadError when more than `settings.max_unreadable` of the scan's px cannot be decoded.
    """
    longest_um = max(slide.size.width, slide.size.height) * scale.um_per_px
    um = min(AREA_UM_PER_PX, max(scale.um_per_px, longest_um / OVERVIEW_PX))
    grid = choose_grid(slide, um / scale.um_per_px)
    side = max(4, round(BLOCK_UM / (grid.downsample * scale.um_per_px)))
    reduce = max(1, math.ceil(max(grid.size.width, grid.size.height) / OVERVIEW_PX))
    blocks, image, states = _scan(slide, grid, side, reduce)
    codes = _classify(blocks, settings)
    areas = _areas(blocks, codes, grid.downsample * scale.um_per_px)
    total = sum(areas[k] for k in ("scanned", "unscanned"))
    if areas["unreadable"] > settings.max_unreadable * total:
        share = 100 * areas["unreadable"] / total
        raise ReadError(
            f"{slide.path}: {share:.0f} % of the scan cannot be decoded (limit {100 * settings.max_unreadable:g} %); "
            "the file is truncated or damaged: copy it again from the scanner"
        )
    area_image = _area_image(codes, states, side / reduce)
    return AreaMap(codes, side * grid.downsample, areas, Overview(image, area_image, grid.downsample * reduce))


def _scan(slide: Slide, grid: Grid, side: int, reduce: int) -> tuple[_Blocks, NDArray[np.uint8], NDArray[np.uint8]]:
    """Statistics per block, the overview image and its px states, from one pass over the grid."""
    rows, columns = -(-grid.size.height // side), -(-grid.size.width // side)
    zeros = [np.zeros((rows, columns), np.float32) for _ in range(3)]
    blocks = _Blocks(zeros[0], zeros[1], zeros[2], np.zeros((3, rows, columns), np.int32))
    small = Size(-(-grid.size.width // reduce), -(-grid.size.height // reduce))
    image = np.full((small.height, small.width, 3), 255, np.uint8)
    states = np.zeros((small.height, small.width), np.uint8)
    unit = math.lcm(side, reduce)
    step = unit * max(1, 1024 // unit)
    for y in range(0, grid.size.height, step):
        for x in range(0, grid.size.width, step):
            box = Box(x, y, min(step, grid.size.width - x), min(step, grid.size.height - y))
            pixels = read_grid(slide, grid, box)
            _measure(pixels, side, blocks, y // side, x // side)
            _shrink(pixels, reduce, image, states, y // reduce, x // reduce)
    return blocks, image, states


def _measure(pixels: Pixels, side: int, blocks: _Blocks, row: int, column: int) -> None:
    """Fill in the blocks of one piece: whole scanned blocks at once, blocks with gaps or cut by the border one by one."""
    lightness = np.asarray(cv2.cvtColor(pixels.rgb, cv2.COLOR_RGB2GRAY), np.uint8)
    rows, columns = lightness.shape[0] // side, lightness.shape[1] // side
    whole = _in_blocks(lightness, rows, columns, side)
    at = np.s_[row : row + rows, column : column + columns]
    if whole.size:
        low, high = round(0.05 * (side * side - 1)), round(0.95 * (side * side - 1))
        ordered = np.partition(whole, (low, high), axis=-1)
        blocks.low[at], blocks.high[at], blocks.mean[at] = ordered[..., low], ordered[..., high], whole.mean(-1)
        blocks.states[0][at] = side * side
        flat = (whole.min(-1) == whole.max(-1)) & np.isin(whole[..., 0], (0, 255))
        gaps = _in_blocks(pixels.state, rows, columns, side).any(-1)
        single = [(int(r), int(c)) for r, c in np.argwhere(flat | gaps)]
    else:
        single = []
    all_rows, all_columns = -(-lightness.shape[0] // side), -(-lightness.shape[1] // side)
    single += [(r, c) for r in range(all_rows) for c in range(all_columns) if r >= rows or c >= columns]
    for r, c in single:
        here = np.s_[r * side : (r + 1) * side, c * side : (c + 1) * side]
        _measure_block(lightness[here], pixels.state[here], blocks, row + r, column + c)


def _in_blocks(image: NDArray[np.uint8], rows: int, columns: int, side: int) -> NDArray[np.uint8]:
    """(h, w) -> (rows, columns, side * side): the whole blocks of an image."""
    cropped = image[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return np.ascontiguousarray(cropped.transpose(0, 2, 1, 3)).reshape(rows, columns, side * side)


def _measure_block(lightness: NDArray[np.uint8], state: NDArray[np.uint8], blocks: _Blocks, row: int, column: int) -> None:
    values = lightness[state == PixelState.SCANNED]
    counts = np.bincount(state.ravel(), minlength=3)
    if values.size and values.min() == values.max() and values[0] in (0, 255):
        counts = np.array([0, state.size - counts[2], counts[2]])  # a scanner's fill colour, not glass
    elif values.size:
        blocks.low[row, column], blocks.high[row, column] = np.percentile(values, (5, 95))
        blocks.mean[row, column] = values.mean()
    blocks.states[:, row, column] = counts


def _shrink(pixels: Pixels, reduce: int, image: NDArray[np.uint8], states: NDArray[np.uint8], row: int, column: int) -> None:
    height, width = -(-pixels.rgb.shape[0] // reduce), -(-pixels.rgb.shape[1] // reduce)
    here = np.s_[row : row + height, column : column + width]
    image[here] = cv2.resize(pixels.rgb, (width, height), interpolation=cv2.INTER_AREA)
    states[here] = pixels.state[::reduce, ::reduce]


def _classify(blocks: _Blocks, settings: MonolayerSettings) -> NDArray[np.uint8]:
    scanned, unscanned, unreadable = blocks.states
    codes = np.full(scanned.shape, Area.EMPTY, np.uint8)
    some = scanned > 0
    if settings.aoi == "all":
        codes[some] = Area.SCREENED
    elif some.any():
        glass = float(np.percentile(blocks.high[some], 90))
        stained = (blocks.high - blocks.low > STAIN_CONTRAST * glass) | (blocks.mean < (1 - STAIN_DARKNESS) * glass)
        near = cv2.dilate((stained & some).astype(np.uint8), np.ones((3, 3), np.uint8))
        codes[(near > 0) & some] = Area.SCREENED
    codes[~some & (unreadable >= unscanned)] = Area.UNREADABLE
    codes[~some & (unreadable < unscanned)] = Area.UNSCANNED
    return codes


def _areas(blocks: _Blocks, codes: NDArray[np.uint8], um_per_px: float) -> dict[str, float]:
    scanned, unscanned, unreadable = blocks.states
    screened = int(scanned[codes == Area.SCREENED].sum())
    px = {
        "scanned": int(scanned.sum() + unreadable.sum()),
        "screened": screened,
        "empty": int(scanned.sum()) - screened,
        "unscanned": int(unscanned.sum()),
        "unreadable": int(unreadable.sum()),
    }
    return {name: area_mm2(count, um_per_px) for name, count in px.items()}


def _area_image(codes: NDArray[np.uint8], states: NDArray[np.uint8], block: float) -> NDArray[np.uint8]:
    rows = np.minimum((np.arange(states.shape[0]) / block).astype(int), codes.shape[0] - 1)
    columns = np.minimum((np.arange(states.shape[1]) / block).astype(int), codes.shape[1] - 1)
    area = codes[np.ix_(rows, columns)].copy()
    area[states == PixelState.UNSCANNED] = Area.UNSCANNED
    area[states == PixelState.UNREADABLE] = Area.UNREADABLE
    return area


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
    return bool((area.blocks[rows, columns] == Area.SCREENED).any())
