"""The scan, looked at once from a low level, piece by piece, and sorted in blocks of about 32 um."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from slidescreen.errors import AuditError, ReadError
from slidescreen.geometry import Box, Size, area_mm2
from slidescreen.monolayer.aoi import Polygon, blocks_in, touches, with_aoi, within
from slidescreen.monolayer.blocks import SUMS, Look, block_sums, fill_colour, measure_look, sum_blocks
from slidescreen.monolayer.classes import MonolayerSettings, classify_blocks
from slidescreen.records import Area, AreaMap, Overview, Scale
from slidescreen.slide import Grid, Pixels, PixelState, Slide, choose_grid, read_grid

LOOK_UM_PER_PX: Final = 1.0
"""Red cells are 7 px wide: their pallor, their overlaps and their edges still show."""
BLOCK_UM: Final = 32.0
OVERVIEW_PX: Final = 1600
PIECE_PX: Final = 1024
SAMPLES: Final = 48
SAMPLE_PX: Final = 128

_Codes = NDArray[np.uint8]


class _Survey:
    """What one pass over the scan gathers. `sums`: see `block_sums`. `states` (3, rows, columns): grid px per `PixelState`.
    `image` and `image_states`: the overview."""

    def __init__(self, grid: Grid, side: int, coarse: int, reduce: int) -> None:
        self.side, self.coarse, self.reduce = side, coarse, reduce
        rows, columns = -(-grid.size.height // side), -(-grid.size.width // side)
        self.sums = np.zeros((len(SUMS), rows, columns), np.float32)
        self.states = np.zeros((3, rows, columns), np.int64)
        small = Size(-(-grid.size.width // reduce), -(-grid.size.height // reduce))
        self.image = np.full((small.height, small.width, 3), 255, np.uint8)
        self.image_states = np.zeros((small.height, small.width), np.uint8)

    def add(self, pixels: Pixels, x: int, y: int, um_per_px: float, look: Look) -> None:
        """A piece at grid px x, y, both whole multiples of `side` and of `reduce`."""
        state = _without_fill(pixels, self.side)
        seen = Pixels(pixels.rgb, state)
        rows, columns = -(-state.shape[0] // self.side), -(-state.shape[1] // self.side)
        at = np.s_[y // self.side : y // self.side + rows, x // self.side : x // self.side + columns]
        for value in range(3):
            self.states[value][at] = sum_blocks(state == value, self.side).astype(np.int64)
        k = self.coarse
        self.sums[:, at[0], at[1]] = block_sums(_shrunk(seen, k), self.side // k, um_per_px * k, look)
        small = _shrunk(seen, self.reduce)
        top, left, (height, width) = y // self.reduce, x // self.reduce, small.state.shape
        self.image[top : top + height, left : left + width] = small.rgb
        self.image_states[top : top + height, left : left + width] = small.state


def map_area(slide: Slide, scale: Scale, settings: MonolayerSettings) -> AreaMap:
    """Sort the whole scan into classes and choose what is screened.

    Raises ReadError when more than `settings.max_unreadable` of the scan's px cannot be decoded, or a chosen area lies outside
    the scan.
    """
    polygons = settings.polygons or with_aoi(settings, settings.aoi).polygons
    if polygons and not touches(polygons, slide.size.width, slide.size.height):
        raise ReadError(
            f"{slide.path}: the chosen area lies outside the scan ({slide.size.width} x {slide.size.height} px); "
            "give it in level-0 px of this scan"
        )
    longest_um = max(slide.size.width, slide.size.height) * scale.um_per_px
    um = min(LOOK_UM_PER_PX, max(scale.um_per_px, longest_um / OVERVIEW_PX))
    grid = choose_grid(slide, um / scale.um_per_px)
    um_per_px = grid.downsample * scale.um_per_px
    coarse = max(1, round(LOOK_UM_PER_PX / um_per_px))
    side = coarse * max(4, round(BLOCK_UM / (coarse * um_per_px)))
    reduce = max(1, math.ceil(max(grid.size.width, grid.size.height) / OVERVIEW_PX))
    survey = _Survey(grid, side, coarse, reduce)
    _look_at_all(slide, grid, um_per_px, survey)
    codes = classify_blocks(survey.sums, um_per_px * coarse)
    _require_readable(slide, survey.states, settings)
    screened = _screened(codes, side * grid.downsample, settings.aoi, polygons)
    areas = _areas(survey.states, codes, screened, area_mm2(slide.size.area, scale.um_per_px))
    check_areas(areas)
    overview = _overview(survey, codes, screened, grid.downsample * reduce)
    chosen = within(polygons) if polygons else None
    return AreaMap(codes, screened, side * grid.downsample, areas, overview, chosen)


def check_areas(areas: Mapping[str, float]) -> None:
    """Raise AuditError, naming the sums, unless every um^2 is of one class and either screened or not."""
    classes = sum(areas[kind.key] for kind in Area if kind != Area.UNSCANNED)
    for name, total in (("area classes", classes), ("screened and not screened", areas["screened"] + areas["not_screened"])):
        if abs(total - areas["scanned"]) > 1e-9 + 1e-6 * areas["scanned"]:
            raise AuditError(f"{name} add up to {total:.9g} mm2, but {areas['scanned']:.9g} mm2 were scanned")


def _look_at_all(slide: Slide, grid: Grid, um_per_px: float, survey: _Survey) -> None:
    look = measure_look(_samples(slide, grid))
    unit = math.lcm(survey.side, survey.reduce)
    step = unit * max(1, PIECE_PX // unit)
    for y in range(0, grid.size.height, step):
        for x in range(0, grid.size.width, step):
            box = Box(x, y, min(step, grid.size.width - x), min(step, grid.size.height - y))
            survey.add(read_grid(slide, grid, box), x, y, um_per_px, look)


def _samples(slide: Slide, grid: Grid) -> list[NDArray[np.uint8]]:
    """The scanned px of at most 48 squares spread evenly over the scan."""
    columns, rows = -(-grid.size.width // SAMPLE_PX), -(-grid.size.height // SAMPLE_PX)
    whole = Box(0, 0, grid.size.width, grid.size.height)
    samples = []
    for index in np.unique(np.linspace(0, columns * rows - 1, SAMPLES).round().astype(int)).tolist():
        box = Box(index % columns * SAMPLE_PX, index // columns * SAMPLE_PX, SAMPLE_PX, SAMPLE_PX)
        pixels = read_grid(slide, grid, box.intersect(whole))
        samples.append(pixels.rgb[(pixels.state == PixelState.SCANNED) & ~fill_colour(pixels)])
    return samples


def _without_fill(pixels: Pixels, side: int) -> NDArray[np.uint8]:
    """The px states, with blocks that hold nothing but a scanner's fill colour as unscanned."""
    scanned = pixels.state == PixelState.SCANNED
    counted = sum_blocks(scanned, side)
    filled = (sum_blocks(fill_colour(pixels) & scanned, side) == counted) & (counted > 0)
    if not filled.any():
        return pixels.state
    where = np.repeat(np.repeat(filled, side, axis=0), side, axis=1)[: scanned.shape[0], : scanned.shape[1]]
    return np.where(where & scanned, PixelState.UNSCANNED, pixels.state).astype(np.uint8)


def _shrunk(pixels: Pixels, factor: int) -> Pixels:
    if factor == 1:
        return pixels
    height, width = (-(-length // factor) for length in pixels.state.shape)
    rgb = np.asarray(cv2.resize(pixels.rgb, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    return Pixels(rgb, pixels.state[::factor, ::factor])


def _require_readable(slide: Slide, states: NDArray[np.int64], settings: MonolayerSettings) -> None:
    share = float(states[PixelState.UNREADABLE].sum() / max(1, states.sum()))
    if share > settings.max_unreadable:
        raise ReadError(
            f"{slide.path}: {100 * share:.0f} % of the scan cannot be decoded (limit {100 * settings.max_unreadable:g} %); "
            "the file is truncated or damaged: copy it again from the scanner"
        )


def _screened(codes: _Codes, block_px: float, aoi: str, polygons: tuple[Polygon, ...]) -> NDArray[np.bool_]:
    if aoi == "auto":
        return np.asarray(codes == Area.MONOLAYER)
    seen = (codes != Area.UNSCANNED) & (codes != Area.UNREADABLE)
    if aoi == "all":
        return np.asarray(seen)
    return np.asarray(seen & blocks_in(polygons, codes.shape, block_px))


def _areas(states: NDArray[np.int64], codes: _Codes, screened: NDArray[np.bool_], frame_mm2: float) -> dict[str, float]:
    scanned = states[PixelState.SCANNED]
    px = {kind.key: int(scanned[codes == kind].sum()) for kind in Area}
    px["unscanned"] = int(states[PixelState.UNSCANNED].sum())
    px["unreadable"] = int(states[PixelState.UNREADABLE].sum())
    px["scanned"] = int(scanned.sum()) + px["unreadable"]
    px["screened"] = int(scanned[screened].sum())
    px["not_screened"] = px["scanned"] - px["screened"]
    return {name: frame_mm2 * count / int(states.sum()) for name, count in px.items()}


def _overview(survey: _Survey, codes: _Codes, screened: NDArray[np.bool_], downsample: float) -> Overview:
    block = survey.side / survey.reduce
    height, width = survey.image_states.shape
    rows = np.minimum((np.arange(height) / block).astype(int), codes.shape[0] - 1)
    columns = np.minimum((np.arange(width) / block).astype(int), codes.shape[1] - 1)
    area = codes[np.ix_(rows, columns)]
    area[survey.image_states == PixelState.UNSCANNED] = Area.UNSCANNED
    area[survey.image_states == PixelState.UNREADABLE] = Area.UNREADABLE
    seen = survey.image_states == PixelState.SCANNED
    return Overview(survey.image, area, screened[np.ix_(rows, columns)] & seen, downsample)
