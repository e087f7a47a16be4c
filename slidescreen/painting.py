"""Draws single blood cells as they look in a May-Gruenwald-Giemsa stained smear.

Everything is drawn in um and in optical density (OD): light through the glass is I0 * exp(-OD) per colour, so that
cells which overlap darken as they do under a microscope. OD triples are in the order red, green, blue. Shapes are kept
as signed distances in um, negative inside, on a square grid of _PITCH_UM with its origin in the middle of the cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from slidescreen.geometry import Box

_Floats = NDArray[np.float32]
_Od = tuple[float, float, float]

_PITCH_UM: Final = 0.0725
_RED_OD: Final[_Od] = (0.21, 0.36, 0.225)
_PLATELET_OD: Final[_Od] = (0.44, 0.80, 0.22)


@dataclass(frozen=True, slots=True, eq=False)
class Sprite:
    """(h, w, 3) float16 OD at the scale of the smear; `body` is the box of the cell itself in sprite px."""

    od: NDArray[np.float16]
    body: Box


def _grid(extent_um: float) -> tuple[_Floats, _Floats]:
    """X and y in um of the px of a square that reaches `extent_um` from its middle; (n, n) each."""
    half = math.ceil(extent_um / _PITCH_UM)
    axis = np.arange(-half, half + 1, dtype=np.float32) * np.float32(_PITCH_UM)
    x, y = np.meshgrid(axis, axis)
    return x, y


def _noise(rng: np.random.Generator, side: int, grain_um: float) -> _Floats:
    """(side, side) smooth noise of mean about 0 and deviation 1, with grains of about `grain_um`."""
    step = max(1.0, grain_um / _PITCH_UM)
    coarse = math.ceil(side / step) + 4
    field = cv2.resize(rng.standard_normal((coarse, coarse), np.float32), None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
    top = int(rng.integers(0, field.shape[0] - side + 1))
    field = field[top : top + side, :side]
    return np.asarray(field / (field.std() + 1e-6), np.float32)


def _inside(distance: _Floats, soft_um: float = 0.12) -> _Floats:
    """Signed distance in um, negative inside -> coverage in [0, 1]."""
    return np.asarray(np.clip(0.5 - distance / (2 * soft_um), 0, 1), np.float32)


def _blob(rng: np.random.Generator, x: _Floats, y: _Floats, radius_um: float, rough: float, aspect: float) -> _Floats:
    """Roughly the signed distance in um to a rounded outline: an ellipse of axis ratio `aspect` with random waves."""
    turn = rng.uniform(0, math.pi)
    u = (x * math.cos(turn) + y * math.sin(turn)) * math.sqrt(aspect)
    v = (y * math.cos(turn) - x * math.sin(turn)) / math.sqrt(aspect)
    angle = np.arctan2(v, u)
    edge = np.full_like(x, radius_um)
    for waves in range(2, 6):
        edge += radius_um * rough * rng.normal() / waves * np.cos(waves * angle + rng.uniform(0, 2 * math.pi))
    return np.asarray(np.hypot(u, v) - edge, np.float32)


def _stroke(x: _Floats, y: _Floats, points: NDArray[np.float64]) -> _Floats:
    """Signed distance in um to the union of discs; `points` is (n, 3): x, y, radius in um."""
    distance = np.full_like(x, np.inf)
    for px, py, radius in points:
        np.minimum(distance, np.hypot(x - np.float32(px), y - np.float32(py)) - np.float32(radius), out=distance)
    return distance


def _specks(rng: np.random.Generator, where: _Floats, per_um2: float, sigma_um: float) -> _Floats:
    """Round specks at random where `where` > 0.5, each of height 1 at its middle and deviation `sigma_um`."""
    chance = per_um2 * _PITCH_UM**2
    seeds = ((rng.random(where.shape, np.float32) < chance) & (where > 0.5)).astype(np.float32)
    sigma = sigma_um / _PITCH_UM
    return np.asarray(cv2.GaussianBlur(seeds, (0, 0), sigma) * (2 * math.pi * sigma**2), np.float32)


# Nuclei: (n, 3) discs x, y, radius in um about the middle of the cell of radius `r`


def _arc(rng: np.random.Generator, bend_um: float, span: float, count: int) -> NDArray[np.float64]:
    """(count, 2) points in um on an arc of radius `bend_um` and angle `span`, turned at random, extent centred."""
    angles = np.linspace(-span / 2, span / 2, count)
    points = np.stack([bend_um * np.cos(angles), bend_um * np.sin(angles)], 1)
    points -= (points.max(0) + points.min(0)) / 2
    turn = rng.uniform(0, 2 * math.pi)
    return np.asarray(points @ np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]))


def _lobes(rng: np.random.Generator, r: float, count: int, lobe: float, bend: float, step: float) -> NDArray[np.float64]:
    """`count` lobes of radius `lobe` * r on an arc of radius `bend` * r, `step` rad apart, joined by strands."""
    middles = _arc(rng, bend * r, step * (count - 1), count) + rng.normal(0, 0.05 * r, (count, 2))
    discs: list[tuple[float, float, float]] = []
    for cx, cy in middles:
        size = lobe * r * rng.uniform(0.85, 1.1)
        along = rng.uniform(0, math.pi)
        reach = size * rng.uniform(0.25, 0.6)
        for t in np.linspace(-1, 1, 5):
            x, y = cx + t * reach * math.cos(along), cy + t * reach * math.sin(along)
            discs.append((x, y, size * (1 - 0.12 * abs(t))))
    for a, b in pairwise(middles):
        thick = rng.uniform(0.3, 0.55)
        discs.extend((*(a + (b - a) * t), thick) for t in np.linspace(0, 1, 20))
    return np.array(discs)


def _segmented(rng: np.random.Generator, r: float) -> NDArray[np.float64]:
    """Three to five lobes."""
    count = int(rng.choice([3, 4, 5], p=[0.45, 0.4, 0.15]))
    lobe = {3: 0.31, 4: 0.27, 5: 0.245}[count]
    return _lobes(rng, r, count, lobe, rng.uniform(0.42, 0.52), {3: 1.75, 4: 1.4, 5: 1.15}[count])


def _bilobed(rng: np.random.Generator, r: float) -> NDArray[np.float64]:
    """Two large lobes."""
    return _lobes(rng, r, 2, 0.39, 0.45, rng.uniform(2.0, 2.7))


def _band(rng: np.random.Generator, r: float) -> NDArray[np.float64]:
    """A bent band of nearly even width."""
    path = _arc(rng, rng.uniform(0.44, 0.52) * r, rng.uniform(3.4, 4.2), 50)
    width = rng.uniform(0.21, 0.25) * r
    swell = 1 + 0.14 * np.abs(np.linspace(-1, 1, 50)) ** 2
    return np.column_stack([path, width * swell])


def _kidney(rng: np.random.Generator, r: float) -> NDArray[np.float64]:
    """A large bean with one deep dent."""
    path = _arc(rng, rng.uniform(0.36, 0.42) * r, rng.uniform(2.6, 3.8), 30)
    width = rng.uniform(0.36, 0.43) * r
    return np.column_stack([path, width * (1 + 0.1 * np.cos(np.linspace(-3, 3, 30)))])


def _round(least: float, most: float) -> Callable[[np.random.Generator, float], NDArray[np.float64]]:
    """A nucleus of `least` to `most` of the cell's radius, slightly oval and off the middle."""

    def shape(rng: np.random.Generator, r: float) -> NDArray[np.float64]:
        radius = r * rng.uniform(least, most)
        towards, along = rng.uniform(0, 2 * math.pi, 2)
        off, reach = rng.uniform(0.3, 1.0) * (r - radius), rng.uniform(0.05, 0.2) * radius
        t = reach * np.linspace(-1, 1, 9)
        x, y = off * math.cos(towards) + t * math.cos(along), off * math.sin(towards) + t * math.sin(along)
        return np.column_stack([x, y, np.full(9, radius - 0.5 * reach)])

    return shape


# Leukocytes


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How a class looks. Lengths in um.

    `diameter`: mean and deviation. `clumps`: (grain, relative depth) pairs of the chromatin. `grain`: relative mottle
    of the cytoplasm. `rough`: waviness of the outline. `granule_sigma`: half the width of a granule. `pale_zone`: how
    much paler the cytoplasm is beside the nucleus. `nucleoli`: about how many.
    """

    diameter: tuple[float, float]
    nucleus: Callable[[np.random.Generator, float], NDArray[np.float64]]
    nucleus_od: _Od
    clumps: tuple[tuple[float, float], ...]
    cytoplasm_od: _Od
    grain: float
    rough: float = 0.04
    granules_od: _Od = (0.0, 0.0, 0.0)
    granules_per_um2: float = 0.0
    granule_sigma: float = 0.1
    granules_over_nucleus: float = 0.0
    pale_zone: float = 0.0
    vacuoles_per_um2: float = 0.0
    nucleoli: int = 0


_NEUTROPHIL: Final[Mapping[str, Any]] = {
    "nucleus_od": (1.12, 4.2, 0.36),
    "clumps": ((0.9, 0.24), (0.4, 0.12)),
    "cytoplasm_od": (0.10, 0.22, 0.06),
    "grain": 0.14,
    "granules_od": (0.16, 0.42, 0.09),
    "granules_per_um2": 1.6,
    "granule_sigma": 0.13,
}

_RECIPES: Final[Mapping[str, _Recipe]] = {
    "NGS": _Recipe(diameter=(13.4, 0.6), nucleus=_segmented, **_NEUTROPHIL),
    "NGB": _Recipe(diameter=(13.2, 0.5), nucleus=_band, **_NEUTROPHIL),
    "LYT": _Recipe(
        diameter=(10.0, 0.7),
        nucleus=_round(0.86, 0.91),
        nucleus_od=(1.08, 4.3, 0.35),
        clumps=((1.2, 0.18), (0.45, 0.09)),
        cytoplasm_od=(0.44, 0.42, 0.09),
        grain=0.12,
    ),
    "MON": _Recipe(
        diameter=(16.8, 0.9),
        nucleus=_kidney,
        nucleus_od=(0.72, 2.9, 0.26),
        clumps=((0.4, 0.15), (1.2, 0.1)),
        cytoplasm_od=(0.25, 0.34, 0.08),
        grain=0.2,
        rough=0.06,
        granules_od=(0.05, 0.18, 0.03),
        granules_per_um2=1.2,
        granule_sigma=0.11,
        vacuoles_per_um2=0.12,
    ),
    "EOS": _Recipe(
        diameter=(14.2, 0.6),
        nucleus=_bilobed,
        nucleus_od=(0.95, 4.0, 0.33),
        clumps=((0.9, 0.2), (0.4, 0.1)),
        cytoplasm_od=(0.13, 0.30, 0.10),
        grain=0.2,
        granules_od=(0.14, 0.42, 0.19),
        granules_per_um2=3.4,
        granule_sigma=0.2,
        granules_over_nucleus=0.15,
    ),
    "BAS": _Recipe(
        diameter=(12.6, 0.5),
        nucleus=_kidney,
        nucleus_od=(0.75, 2.6, 0.26),
        clumps=((0.9, 0.2),),
        cytoplasm_od=(0.17, 0.45, 0.10),
        grain=0.2,
        granules_od=(0.8, 1.9, 0.35),
        granules_per_um2=0.9,
        granule_sigma=0.27,
        granules_over_nucleus=0.8,
    ),
    "MYO": _Recipe(
        diameter=(13.0, 0.9),
        nucleus=_round(0.84, 0.93),
        nucleus_od=(0.82, 3.8, 0.28),
        clumps=((0.35, 0.07), (1.8, 0.09)),
        cytoplasm_od=(0.44, 0.60, 0.14),
        grain=0.1,
        rough=0.05,
        pale_zone=0.3,
        nucleoli=2,
    ),
}

PAINTABLE: Final[tuple[str, ...]] = tuple(_RECIPES)
"""The class codes that can be drawn."""


def leukocyte(rng: np.random.Generator, code: str, um_per_px: float) -> Sprite:
    """One leukocyte of the class `code`, one of PAINTABLE; every one is a little different."""
    recipe = _RECIPES[code]
    radius = max(0.35 * recipe.diameter[0], rng.normal(*recipe.diameter) / 2)
    x, y = _grid(1.35 * radius + 1)
    side = x.shape[0]
    outline = _blob(rng, x, y, radius, recipe.rough, rng.uniform(0.84, 1.0)) + 0.12 * _noise(rng, side, 2.0)
    shaken_x, shaken_y = (a + 0.2 * _noise(rng, side, 2.2) for a in (x, y))
    nuclear = np.maximum(_stroke(shaken_x, shaken_y, recipe.nucleus(rng, radius)), outline + 0.25)
    cell, nucleus = _inside(outline, 0.2), _inside(nuclear, 0.15)
    stain = rng.normal(1, 0.06)
    cytoplasm = cell * (1 + recipe.grain * _noise(rng, side, 0.35))
    cytoplasm *= 1 - recipe.pale_zone * np.exp(-np.maximum(nuclear, 0) / 0.6)
    vacuoles = np.clip(_specks(rng, cell, recipe.vacuoles_per_um2, 0.28), 0, 0.9)
    granules = np.clip(_specks(rng, cell, recipe.granules_per_um2, recipe.granule_sigma), 0, 1.6)
    granules *= (1 - (1 - recipe.granules_over_nucleus) * nucleus) * cell
    cytoplasm *= (1 - nucleus) * (1 - vacuoles)
    chromatin = nucleus * _chromatin(rng, recipe, nuclear) * (1 - 0.6 * vacuoles)
    od = sum(
        layer[..., None] * np.array(colour, np.float32) * np.float32(stain)
        for layer, colour in (
            (cytoplasm, recipe.cytoplasm_od),
            (granules, recipe.granules_od),
            (chromatin, recipe.nucleus_od),
        )
    )
    return _sprite(np.asarray(od, np.float32), cell, um_per_px)


def _chromatin(rng: np.random.Generator, recipe: _Recipe, nuclear: _Floats) -> _Floats:
    """Relative density of the chromatin, about 1; darker at the membrane, paler at the nucleoli."""
    side = nuclear.shape[0]
    density = 0.76 + 0.34 * (1 - np.exp(np.minimum(nuclear, 0) / 0.7)) + 0.1 * np.exp(-((nuclear / 0.3) ** 2))
    for grain, depth in recipe.clumps:
        density += depth * _noise(rng, side, grain)
    if recipe.nucleoli:
        deep = np.argwhere(nuclear < -1.3)
        for row, column in deep[rng.integers(0, len(deep), int(rng.integers(1, recipe.nucleoli + 2)))]:
            yy, xx = np.ogrid[:side, :side]
            far = np.hypot(yy - row, xx - column) * _PITCH_UM
            density -= 0.45 * np.exp(-((far / rng.uniform(0.6, 0.9)) ** 4))
    return np.asarray(np.clip(density, 0.3, 1.8), np.float32)


def _sprite(od: _Floats, cell: _Floats, um_per_px: float) -> Sprite:
    """Brings a drawing from the grid to the scale of the smear and cuts it to what is stained."""
    zoom = _PITCH_UM / um_per_px
    if not math.isclose(zoom, 1):
        how = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
        od = np.asarray(cv2.resize(od, None, fx=zoom, fy=zoom, interpolation=how), np.float32)
        cell = np.asarray(cv2.resize(cell, None, fx=zoom, fy=zoom, interpolation=how), np.float32)
    left, top, width, height = cv2.boundingRect((od.max(axis=2) > 0.005).astype(np.uint8))
    cut = np.s_[top : top + height, left : left + width]
    body = cv2.boundingRect((cell[cut] > 0.5).astype(np.uint8))
    return Sprite(od[cut].astype(np.float16), Box(*body))


# Red cells and platelets


def red_cell(rng: np.random.Generator, um_per_px: float) -> Sprite:
    """A disc with a central pallor of random width and depth, a little uneven in outline and stain."""
    radius = rng.normal(7.5, 0.5) / 2
    x, y = _grid(1.3 * radius)
    aspect = rng.uniform(0.9, 1) if rng.random() < 0.6 else rng.uniform(0.72, 0.9)
    outline = _blob(rng, x, y, radius, rng.uniform(0.01, 0.05), aspect)
    rho = np.clip(1 + outline / radius, 0, 1)
    pallor = np.clip((rng.uniform(0.65, 0.85) - rho) / rng.uniform(0.4, 0.6), 0, 1)
    pallor = pallor**2 * (3 - 2 * pallor)
    thickness = 1.05 - rng.uniform(0.25, 1.0) * pallor + 0.06 * _noise(rng, x.shape[0], 3.0)
    rim = 0.2 * np.exp(-(((outline + 0.3) / 0.25) ** 2))
    cell = _inside(outline, 0.2)
    od = (cell * (thickness + rim) * np.float32(rng.normal(1, 0.1)))[..., None] * np.array(_RED_OD, np.float32)
    return _sprite(np.asarray(od, np.float32), cell, um_per_px)


def platelet(rng: np.random.Generator, um_per_px: float) -> Sprite:
    """A small granular speck."""
    radius = rng.uniform(1.0, 1.6)
    x, y = _grid(1.6 * radius + 0.3)
    outline = _blob(rng, x, y, radius, 0.2, rng.uniform(0.75, 1))
    cell = _inside(outline, 0.3)
    density = cell * np.clip(0.55 + 0.25 * _noise(rng, x.shape[0], 0.5) + 0.7 * _inside(outline + 0.5, 0.5), 0.2, 2)
    od = density[..., None] * np.array(_PLATELET_OD, np.float32)
    return _sprite(np.asarray(od, np.float32), cell, um_per_px)
