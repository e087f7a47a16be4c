"""The scan at a glance: picture, areas and cells, as compact SVG paths.

The drawing's frame is `UNITS` per px of the picture shown, origin at the top left of the scan.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from slidescreen.records import Area, ScreenedCell, SlideResult
from slidescreen.report import images, wording
from slidescreen.report.gallery import GALLERY_ORDER
from slidescreen.taxonomy import BY_CODE, NOT_LEUKOCYTE

UNITS: Final = 10
LONGEST_SIDE: Final = 1600
PICTURE_BUDGET: Final = 700_000
AREA_SIDE: Final = 800
"""Areas are outlined on a grid of at most this many px ..."""
AREA_TEXT: Final = 60_000
"""... coarser where an outline would take more characters."""

CROWDED: Final = 3000
"""With more cells than this the dots are drawn small and without halo."""

AREA_LOOK: Final = (
    (Area.MONOLAYER, "Monolayer", "#2e7d32"),
    (Area.TOO_THICK, "Too thick", "#c62828"),
    (Area.TOO_THIN, "Too thin", "#f9a825"),
    (Area.OUT_OF_FOCUS, "Out of focus", "#8e24aa"),
    (Area.INK, "Ink", "#1565c0"),
    (Area.EMPTY, "Empty", "#9e9e9e"),
    (Area.UNSCANNED, "Unscanned", "#424242"),
    (Area.UNREADABLE, "Unreadable", "url(#hatch)"),
)
"""Name and tint of every class on the map, in the order of the legend."""

NOT_COUNTED: Final = (("unsure", "Unsure", "#5f6368"), ("edge", "Edge", "#9e9e9e"), ("rejected", "Rejected", "#bdbdbd"))


@dataclass(frozen=True, slots=True)
class Layer:
    """The dots of one class or status: key, name, colour, how many, SVG path; `on` unless switched on by the reader."""

    key: str
    name: str
    colour: str
    count: int
    path: str
    on: bool


@dataclass(frozen=True, slots=True)
class AreaLayer:
    """A class of area that the scan holds: key, name, tint, size in mm^2, SVG path."""

    key: str
    name: str
    colour: str
    mm2: str
    path: str


@dataclass(frozen=True, slots=True)
class Map:
    """What the template draws. `width`, `height`, `marks` (id, x, y) in drawing units; `bar_percent` of the width.

    `dot`, `halo` (white, around a dot), `ring` and `ring_hole` are diameters in screen px.
    """

    picture: str
    width: int
    height: int
    screened: str
    areas: tuple[AreaLayer, ...]
    layers: tuple[Layer, ...]
    rings: str
    ring_count: int
    marks: tuple[tuple[int, int, int], ...]
    dot: float
    halo: float
    ring: float
    ring_hole: float
    bar_percent: float
    bar_label: str


def is_blast(cell: ScreenedCell, threshold: float) -> bool:
    """Whether the blast fraction counts it: a typed leukocyte with P(blast) at or above the threshold."""
    typed = cell.status == "typed" and cell.label not in NOT_LEUKOCYTE
    return typed and cell.p_blast is not None and cell.p_blast >= threshold


def draw(result: SlideResult, shown: Collection[int]) -> Map:
    """The map of one scan. Blasts whose index is in `shown` become links to their tiles."""
    picture = images.shrink(result.overview.image, LONGEST_SIDE)
    height, width = (side * UNITS for side in picture.shape[:2])
    to_units = UNITS * picture.shape[1] / result.overview.image.shape[1] / result.overview.downsample
    places = [(round(c.cell.centre.x * to_units), round(c.cell.centre.y * to_units)) for c in result.cells]
    blasts = [i for i, c in enumerate(result.cells) if is_blast(c, result.differential.blast.threshold)]
    bar_um = round_length(0.2 * result.slide.size.width * result.slide.scale.um_per_px)
    crowded = len(places) > CROWDED
    dot = 3.0 if crowded else 5.0 if len(places) > CROWDED / 6 else 7.0
    return Map(
        picture=images.data_uris({0: picture}, PICTURE_BUDGET)[0],
        width=width,
        height=height,
        screened=outline(result.overview.screened, width, height),
        areas=_areas(result, width, height),
        layers=_layers(result.cells, places),
        rings=dots(places[i] for i in blasts),
        ring_count=len(blasts),
        marks=tuple((result.cells[i].id, *places[i]) for i in blasts if i in shown),
        dot=dot,
        halo=0.0 if crowded else 1.5,
        ring=dot + (4 if crowded else 7),
        ring_hole=dot + (1.5 if crowded else 4),
        bar_percent=100 * bar_um / (result.slide.size.width * result.slide.scale.um_per_px),
        bar_label=wording.length(bar_um),
    )


def _areas(result: SlideResult, width: int, height: int) -> tuple[AreaLayer, ...]:
    found = []
    for kind, name, colour in AREA_LOOK:
        mask = result.overview.area == kind
        if mask.any():
            path = outline(mask, width, height, least=0.0 if kind == Area.UNREADABLE else 0.5)
            mm2 = wording.number(result.area_mm2.get(kind.key), 2)
            found.append(AreaLayer(kind.key, name, colour, mm2, path))
    return tuple(found)


def dots(places: Iterable[tuple[int, int]]) -> str:
    """Zero-length lines: round line caps make them dots."""
    return "".join(f"M{x} {y}h0" for x, y in places)


def round_length(um: float) -> float:
    """The largest of 1, 2, 5 x 10^k um that is at most `um`."""
    power = 10.0 ** math.floor(math.log10(um))
    return next(step * power for step in (5, 2, 1) if step * power <= um * (1 + 1e-9))


def outline(mask: NDArray[np.bool_], width: int, height: int, least: float = 0.5) -> str:
    """Closed SVG path around a mask that covers the drawing; holes stay open under the even-odd rule.

    A grid px belongs to it where the mask covers more than the part `least`, so 0 loses nothing. The line
    follows the mask to about 1 px of an `AREA_SIDE` px grid, more coarsely where the mask is very ragged.
    """
    side, text = AREA_SIDE, ""
    while side >= 25:
        grid = images.shrink(np.where(mask, 255, 0).astype(np.uint8), side) > 255 * least
        text = _trace(grid, width, height)
        if len(text) <= AREA_TEXT:
            break
        side //= 2
    return text


def _trace(grid: NDArray[np.bool_], width: int, height: int) -> str:
    rows, columns = grid.shape
    # Every px becomes 2 x 2, so that its own outline is never a line or a point.
    doubled = np.repeat(np.repeat(grid, 2, axis=0), 2, axis=1).astype(np.uint8)
    contours, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    stretch = np.array([width / max(1, 2 * columns - 1), height / max(1, 2 * rows - 1)])
    pieces = []
    for contour in contours:
        points = np.round(cv2.approxPolyDP(contour, 1.0, closed=True)[:, 0, :] * stretch).astype(int)
        pieces.append("M" + " ".join(f"{x} {y}" for x, y in points.tolist()) + "z")
    return "".join(pieces)


def _layers(cells: tuple[ScreenedCell, ...], places: list[tuple[int, int]]) -> tuple[Layer, ...]:
    members: dict[str, list[tuple[int, int]]] = {}
    for cell, place in zip(cells, places, strict=True):
        members.setdefault(cell.label if cell.status == "typed" else cell.status, []).append(place)
    named = [(code, BY_CODE[code].name, BY_CODE[code].colour) for code in GALLERY_ORDER]
    return tuple(
        Layer(key, name, colour, len(members[key]), dots(members[key]), key != "rejected")
        for key, name, colour in (*named, *NOT_COUNTED)
        if key in members
    )
