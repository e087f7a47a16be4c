"""Paints a synthetic stained smear with known truth, and writes it as a pyramidal scan.

The canvas holds optical density (see `painting`); light, blur and noise come last, as in a microscope.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from slidescreen.errors import OutputError
from slidescreen.geometry import Box, Point, Size, area_mm2, um_to_px
from slidescreen.painting import PAINTABLE, Sprite, leukocyte, platelet, red_cell
from slidescreen.records import RgbImage

DEFAULT_LEUKOCYTES: Final[Mapping[str, int]] = MappingProxyType(
    {"NGS": 30, "NGB": 3, "LYT": 15, "MON": 5, "EOS": 3, "BAS": 1, "MYO": 9}
)
"""What the demo smear holds when nothing else is asked for: cells per class code."""

_UM_PER_PX: Final = 0.0725
_GROUND_RGB: Final = (246, 240, 238)  # empty glass
_OPTICS_UM: Final = 0.16  # standard deviation of the blur of the lens
_UNEVEN_LIGHT: Final = 0.03  # greatest deviation of the light from its mean
_NOISE: Final = 1.5  # standard deviation of the sensor noise, in grey levels
_RED_PER_MM2: Final = 11_500
_RED_PER_PLATELET: Final = 17
_RED_RADIUS_UM: Final = 3.8
_PLATELET_RADIUS_UM: Final = 1.4
_LEUKOCYTE_GAP_UM: Final = 3.0
_FLATTEN: Final = 3.0  # cells that overlap are spread thinner: OD a, then b -> a + b / (1 + 3 a)
_ATTEMPTS: Final = 2000  # random places tried per leukocyte
_BAND_ROWS: Final = 512
_TILE_PX: Final = 256
_COARSEST_PX: Final = 1024

_Od = NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class PaintedCell:
    """One painted leukocyte: taxonomy code, middle and enclosing box of the whole cell, in level-0 px."""

    label: str
    centre: Point
    box: Box


def paint_smear(
    size: Size, um_per_px: float = _UM_PER_PX, *, leukocytes: Mapping[str, int] | None = None, seed: int = 0
) -> tuple[RgbImage, list[PaintedCell]]:
    """A smear of `size` px at `um_per_px` and its leukocytes: (height, width, 3) uint8 RGB and the truth.

    `leukocytes` are cells per class code, DEFAULT_LEUKOCYTES when None; codes that can be drawn: `painting.PAINTABLE`.
    They lie wholly inside the image and apart from each other. The same arguments give the same image.

    Raises ValueError when um_per_px is outside 0.05 to 0.5, a code cannot be drawn, or the cells do not fit.
    """
    if not 0.05 <= um_per_px <= 0.5:
        raise ValueError(f"{um_per_px} um/px: a smear is painted at 0.05 to 0.5 um/px")
    counts = DEFAULT_LEUKOCYTES if leukocytes is None else leukocytes
    for code, count in counts.items():
        if code not in PAINTABLE or count < 0:
            raise ValueError(f"{count} x {code!r}: give a count of 0 or more for any of {', '.join(PAINTABLE)}")
    rng = np.random.default_rng(seed)
    labels = [code for code, count in counts.items() for _ in range(count)]
    sprites = [leukocyte(rng, code, um_per_px) for code in labels]
    boxes = _place_leukocytes(rng, size, um_per_px, sprites)
    od = np.zeros((size.height, size.width, 3), np.float16)
    for sprite, box in zip(sprites, boxes, strict=True):
        _add(od, sprite.od, box.x - sprite.body.x, box.y - sprite.body.y)
    _scatter_red_cells_and_platelets(rng, od, um_per_px, boxes)
    cells = [PaintedCell(label, box.centre, box) for label, box in zip(labels, boxes, strict=True)]
    return _expose(rng, od, um_per_px), cells


def write_demo(path: Path, size: Size = Size(8192, 6144), seed: int = 0) -> list[PaintedCell]:  # noqa: B008
    """Paints the default smear, writes the scan to `path`, the truth beside it (same name, .json), and returns it.

    The truth: um_per_px, width, height, and cells with label, xmin, ymin, xmax, ymax in level-0 px, half open.
    Raises ValueError when the leukocytes do not fit into `size`, OutputError when a file cannot be written.
    """
    image, cells = paint_smear(size, _UM_PER_PX, seed=seed)
    write_pyramid(path, image, _UM_PER_PX)
    truth = {
        "um_per_px": _UM_PER_PX,
        "width": size.width,
        "height": size.height,
        "cells": [
            {"label": c.label, "xmin": c.box.x, "ymin": c.box.y, "xmax": c.box.right, "ymax": c.box.bottom} for c in cells
        ],
    }
    beside = path.with_suffix(".json")
    temporary = _temporary(beside)
    try:
        temporary.write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
        temporary.replace(beside)
    except OSError as error:
        raise OutputError(f"{beside}: cannot be written ({error.strerror}); choose another folder") from error
    finally:
        temporary.unlink(missing_ok=True)
    return cells


def write_pyramid(
    path: Path, image: RgbImage, um_per_px: float | None, *, levels: int | None = None, quality: int = 90
) -> None:
    """Writes `image`, (H, W, 3) uint8 RGB, as a tiled JPEG pyramid (generic TIFF) that OpenSlide opens.

    Every level halves the one before by area means; `levels` of them, or, when None, until the long side is 1024 px or
    less. `um_per_px` of level 0 becomes the resolution tags (px per cm); None leaves them out. The file appears whole
    or not at all. Raises ValueError for fewer than 1 level, OutputError when it cannot be written.
    """
    if levels is not None and levels < 1:
        raise ValueError(f"{levels} levels: a pyramid has at least 1")
    temporary = _temporary(path)
    try:
        with tifffile.TiffWriter(temporary, bigtiff=image.nbytes > 2**31) as writer:
            level = 0
            while True:
                writer.write(image, **_page_options(um_per_px, level, quality))
                level += 1
                done = max(image.shape[:2]) <= _COARSEST_PX if levels is None else level >= levels
                if done or min(image.shape[:2]) < 2:
                    break
                half = (image.shape[1] // 2, image.shape[0] // 2)
                image = np.asarray(cv2.resize(image, half, interpolation=cv2.INTER_AREA), np.uint8)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
    finally:
        temporary.unlink(missing_ok=True)


def _page_options(um_per_px: float | None, level: int, quality: int) -> dict[str, Any]:
    """Keyword arguments of TiffWriter.write for one level of the pyramid."""
    options: dict[str, Any] = {
        "photometric": "rgb",
        "tile": (_TILE_PX, _TILE_PX),
        "compression": "jpeg",
        "compressionargs": {"level": quality},
        "subfiletype": int(level > 0),
        "metadata": None,
        "software": "slidescreen demo",
    }
    if um_per_px is not None:
        per_cm = 1e4 / (um_per_px * 2**level)
        options |= {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}
    return options


def _temporary(path: Path) -> Path:
    """Where `path` is written before it is renamed; makes the folder. Raises OutputError when it cannot be made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path.parent}: cannot be made ({error.strerror}); choose another folder") from error
    return path.with_name(f".{path.name}.{os.getpid()}.part")


class _Crowd:
    """Discs in px that were already placed, found by neighbourhood."""

    def __init__(self, bucket_px: float) -> None:
        self._bucket_px = bucket_px  # not less than any sum of two radii
        self._discs: defaultdict[tuple[int, int], list[tuple[float, float, float]]] = defaultdict(list)

    def add(self, x: float, y: float, radius: float) -> None:
        self._discs[int(x // self._bucket_px), int(y // self._bucket_px)].append((x, y, radius))

    def closeness(self, x: float, y: float, radius: float) -> float:
        """Least distance to another disc's middle over the sum of the radii: 1 where the two touch, inf when alone."""
        column, row = int(x // self._bucket_px), int(y // self._bucket_px)
        return min(
            (
                math.hypot(x - other_x, y - other_y) / (radius + other_radius)
                for i in (column - 1, column, column + 1)
                for j in (row - 1, row, row + 1)
                for other_x, other_y, other_radius in self._discs.get((i, j), ())
            ),
            default=math.inf,
        )


def _place_leukocytes(rng: np.random.Generator, size: Size, um_per_px: float, sprites: Sequence[Sprite]) -> list[Box]:
    """A random place for every cell, in level-0 px: inside the image and _LEUKOCYTE_GAP_UM apart; large cells first."""
    gap = math.ceil(um_to_px(_LEUKOCYTE_GAP_UM, um_per_px))
    corners = np.zeros((0, 4), np.int64)  # xmin, ymin, xmax, ymax of the boxes placed so far, gap included
    boxes: dict[int, Box] = {}
    for index in sorted(range(len(sprites)), key=lambda i: -sprites[i].body.width * sprites[i].body.height):
        width, height = sprites[index].body.width, sprites[index].body.height
        room_x, room_y = size.width - width - gap, size.height - height - gap
        for _ in range(_ATTEMPTS if min(room_x, room_y) >= 0 else 0):
            x, y = gap // 2 + int(rng.integers(room_x + 1)), gap // 2 + int(rng.integers(room_y + 1))
            apart = (x >= corners[:, 2]) | (y >= corners[:, 3]) | (x + width <= corners[:, 0])
            if np.all(apart | (y + height <= corners[:, 1])):
                break
        else:
            raise ValueError(
                f"{len(sprites)} leukocytes do not fit into {size.width} x {size.height} px at {um_per_px} um/px: "
                "paint a larger smear or fewer cells"
            )
        corners = np.vstack([corners, [[x - gap, y - gap, x + width + gap, y + height + gap]]])
        boxes[index] = Box(x, y, width, height)
    return [boxes[index] for index in range(len(sprites))]


def _scatter_red_cells_and_platelets(rng: np.random.Generator, od: _Od, um_per_px: float, leukocytes: Sequence[Box]) -> None:
    """Adds red cells and platelets to the canvas, aside of the leukocytes (level-0 px)."""
    crowd = _Crowd(um_to_px(16, um_per_px))
    for box in leukocytes:
        crowd.add(box.centre.x, box.centre.y, (box.width + box.height) / 4)
    red_places = _place_red_cells(rng, od.shape[:2], um_per_px, crowd)
    _stamp(rng, od, [red_cell(rng, um_per_px) for _ in range(150)], red_places)
    platelet_places: list[tuple[float, float]] = []
    radius = um_to_px(_PLATELET_RADIUS_UM, um_per_px)
    for _ in range(20 * len(red_places) // _RED_PER_PLATELET):
        x, y = rng.uniform(0, od.shape[1]), rng.uniform(0, od.shape[0])
        if len(platelet_places) < len(red_places) // _RED_PER_PLATELET and crowd.closeness(x, y, radius) > 0.95:
            crowd.add(x, y, radius)
            platelet_places.append((x, y))
    _stamp(rng, od, [platelet(rng, um_per_px) for _ in range(30)], platelet_places)


def _place_red_cells(
    rng: np.random.Generator, shape: tuple[int, ...], um_per_px: float, crowd: _Crowd
) -> list[tuple[float, float]]:
    """Middles of red cells in level-0 px; most lie free, some overlap, and none lies on a leukocyte of the crowd."""
    height, width = shape[:2]
    radius = um_to_px(_RED_RADIUS_UM, um_per_px)
    red = _Crowd(um_to_px(16, um_per_px))
    wanted = round(_RED_PER_MM2 * area_mm2((width + 2 * radius) * (height + 2 * radius), um_per_px))
    places: list[tuple[float, float]] = []
    for _ in range(12 * wanted):
        x, y = rng.uniform(-radius, width + radius), rng.uniform(-radius, height + radius)
        near = red.closeness(x, y, radius)
        if near < 0.5 or (near < 0.97 and rng.random() > 0.12) or crowd.closeness(x, y, radius) < 0.97:
            continue
        red.add(x, y, radius)
        places.append((x, y))
        if len(places) == wanted:
            break
    for x, y in places:
        crowd.add(x, y, radius)
    return places


def _stamp(rng: np.random.Generator, od: _Od, bank: Sequence[Sprite], places: Sequence[tuple[float, float]]) -> None:
    """Adds a random sprite of the bank, turned and mirrored at random, at every place (middles in level-0 px)."""
    for x, y in places:
        sprite = np.rot90(bank[int(rng.integers(len(bank)))].od, int(rng.integers(4)))
        if rng.random() < 0.5:
            sprite = sprite[:, ::-1]
        _add(od, sprite, round(x - sprite.shape[1] / 2), round(y - sprite.shape[0] / 2))


def _add(od: _Od, sprite: _Od, x: int, y: int) -> None:
    """Adds the sprite to the canvas with its top left px at (x, y), thinner over stained px; the outside is cut off."""
    window = Box(x, y, sprite.shape[1], sprite.shape[0]).intersect(Box(0, 0, od.shape[1], od.shape[0]))
    if window.width and window.height:
        below = od[window.y : window.bottom, window.x : window.right]
        stained = below.astype(np.float32)
        above = sprite[window.y - y : window.bottom - y, window.x - x : window.right - x].astype(np.float32)
        below[:] = stained + above / (1 + _FLATTEN * stained)


def _expose(rng: np.random.Generator, od: _Od, um_per_px: float) -> RgbImage:
    """Optical density (H, W, 3) -> the camera's image: uneven light, blur of the lens, sensor noise; uint8 RGB."""
    height, width = od.shape[:2]
    image = np.empty(od.shape, np.uint8)
    sigma = um_to_px(_OPTICS_UM, um_per_px)
    halo = math.ceil(4 * sigma)
    waves = [(rng.uniform(0.5, 2.5, 2) * math.pi, rng.uniform(0, 2 * math.pi, 2)) for _ in range(3)]
    for top in range(0, height, _BAND_ROWS):
        bottom = min(top + _BAND_ROWS, height)
        above, below = max(0, top - halo), min(height, bottom + halo)
        sharp = np.exp(-od[above:below].astype(np.float32)) * np.array(_GROUND_RGB, np.float32)
        light = np.asarray(cv2.GaussianBlur(sharp, (0, 0), sigma), np.float32)[top - above : bottom - above]
        rows, columns = np.arange(top, bottom) / height, np.arange(width) / width
        uneven = sum(
            np.outer(np.sin(f[0] * rows + p[0]), np.sin(f[1] * columns + p[1])) * (_UNEVEN_LIGHT / len(waves)) for f, p in waves
        )
        light *= np.asarray(1 + uneven, np.float32)[..., None]
        light += np.asarray(_NOISE * rng.standard_normal(light.shape, np.float32), np.float32)
        image[top:bottom] = np.clip(light + 0.5, 0, 255).astype(np.uint8)
    return image
