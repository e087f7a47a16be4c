"""Maps of the detector's network -> bodies: peaks of the centre map, the px that point to them, their outlines and measures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from slidescreen.detector_model import COARSE, FINE, KINDS, OFFSET_UM
from slidescreen.geometry import Box, Point
from slidescreen.records import Outline, RgbImage
from slidescreen.stain import by_colour, neutrality

MERGE_UM: Final = 3.5
"""Peaks that point to places nearer to each other than this are one body's."""
REACH_UM: Final = 6.0
"""A px that points to no peak within this is no body's."""
PART_UM2: Final = 6.0
"""A body with less nucleus than this that lies against one with more is a part of it: a process, or cytoplasm."""
PART_BORDER: Final = 0.1
"""Least share of its border that it has in common with the other."""
AROUND_UM: Final = 4.0
"""How far around a body's window glass is looked for."""
FINER: Final = 4
"""Outlines are drawn at 1/4 of the maps' finer step."""
TOLERANCE_UM: Final = 0.16
"""Outlines are simplified by at most this."""

FloatMap = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class PixelMaps:
    """The network's outputs for one image, float32 logits; see `detector_model.Maps`, without the batch axis."""

    centre: FloatMap
    kind: FloatMap
    offset: FloatMap
    masks: FloatMap


@dataclass(frozen=True, slots=True)
class Shape:
    """One body, in px of the network's image. `nucleus`: one outline per lobe, where asked for. `kind`: of `KINDS`. `score`:
    height of its peak in the centre map, 0-1. `focus`: see `measure_focus`. `neutrality`: see `stain.neutrality`."""

    centre: Point
    box: Box
    outline: Outline
    nucleus: tuple[Outline, ...]
    area_um2: float
    nucleus_um2: float
    eccentricity: float
    focus: float
    kind: str
    score: float
    neutrality: float = 0.0


def find_shapes(
    maps: PixelMaps, image: RgbImage, um_per_px: float, centre_score: float, candidate_um2: float, *, nuclei: bool
) -> list[Shape]:
    """Every body of at least `candidate_um2` in the image (h, w, 3), from its maps; with outlines of `nuclei` or without."""
    points, scores = _peaks(maps, um_per_px, centre_score)
    if not len(points):
        return []
    labels, areas, kinds = _assign(maps, points, um_per_px)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    shapes = []
    boxes = _boxes(labels, len(points))
    for k in np.flatnonzero(areas * (FINE * um_per_px) ** 2 >= 0.8 * candidate_um2).tolist():
        kind = KINDS[int(kinds[k].argmax())]
        shape = _shape(maps, labels, k + 1, boxes[k], image, grey, um_per_px, kind, float(scores[k]), nuclei=nuclei)
        if shape is not None and shape.area_um2 >= candidate_um2:
            shapes.append(shape)
    return shapes


def _peaks(maps: PixelMaps, um_per_px: float, centre_score: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """((n, 2) x, y in px, (n,) scores) of the bodies' centres, the surest first, peaks of the same body merged."""
    centre = maps.centre
    highest = cv2.dilate(centre, np.ones((3, 3), np.uint8))
    rows, columns = np.nonzero((centre == highest) & (centre > np.log(centre_score / (1 - centre_score))))
    score = 1 / (1 + np.exp(-centre[rows, columns].astype(np.float64)))
    unit = OFFSET_UM / um_per_px
    x = COARSE * (columns + 0.5) + unit * maps.offset[0, rows, columns]
    y = COARSE * (rows + 0.5) + unit * maps.offset[1, rows, columns]
    order = np.lexsort((columns, rows, -score))
    points = np.stack([x, y], 1)[order]
    near = (
        cKDTree(points).query_pairs(MERGE_UM / um_per_px, output_type="ndarray") if len(points) > 1 else np.zeros((0, 2), int)
    )
    keep = np.ones(len(points), bool)
    for first, second in near[np.lexsort((near[:, 1], near[:, 0]))].tolist():
        if keep[first]:
            keep[second] = False
    return points[keep], score[order][keep]


def _assign(
    maps: PixelMaps, points: NDArray[np.float64], um_per_px: float
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.float64]]:
    """Labels (h/2, w/2), k + 1 where a body px points to peak k; px per peak; mean kind logits (n, 3) per peak."""
    rows, columns = np.nonzero(maps.masks[0] > 0)
    step, unit = COARSE // FINE, OFFSET_UM / um_per_px
    offset = [cv2.resize(o, None, fx=step, fy=step, interpolation=cv2.INTER_LINEAR)[rows, columns] for o in maps.offset]
    votes = np.stack([FINE * (columns + 0.5) + unit * offset[0], FINE * (rows + 0.5) + unit * offset[1]], axis=1)
    _, nearest = cKDTree(points).query(votes, distance_upper_bound=REACH_UM / um_per_px)
    owned = nearest < len(points)
    rows, columns, nearest = rows[owned], columns[owned], nearest[owned]
    labels = np.zeros(maps.masks.shape[1:], np.int32)
    labels[rows, columns] = nearest + 1
    stained = np.bincount(nearest[maps.masks[1, rows, columns] > 0], minlength=len(points))
    nuclei = np.asarray(stained * (FINE * um_per_px) ** 2, np.float64)
    areas = np.bincount(nearest, minlength=len(points))
    sums = [np.bincount(nearest, kind[rows // step, columns // step], minlength=len(points)) for kind in maps.kind]
    kinds = np.stack(sums, 1) / np.maximum(areas, 1)[:, None]
    parts = np.flatnonzero((nuclei < PART_UM2) & (areas > 0) & (kinds.argmax(1) == 0))
    for part, whole in _joined(labels, parts + 1, nuclei).items():
        labels[labels == part] = whole
        areas[whole - 1] += areas[part - 1]
        areas[part - 1] = 0
    return labels, areas, kinds


def _joined(labels: NDArray[np.int32], parts: NDArray[np.int64], nuclei: NDArray[np.float64]) -> dict[int, int]:
    """Part without a nucleus -> the label with one that it shares the longest border with; parts that lie alone are absent."""
    joined = {}
    for part in parts.tolist():
        rows, columns = np.nonzero(labels == part)
        y, x = rows.min(), columns.min()
        window = labels[max(0, y - 1) : rows.max() + 2, max(0, x - 1) : columns.max() + 2]
        around = (cv2.dilate((window == part).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0) & (window != part)
        others = window[around & (window > 0)]
        lengths = np.bincount(others[nuclei[others - 1] >= PART_UM2]) if len(others) else np.zeros(0)
        if len(lengths) and lengths.max() >= PART_BORDER * around.sum():
            joined[part] = int(lengths.argmax())
    return joined


def _boxes(labels: NDArray[np.int32], count: int) -> list[tuple[int, int, int, int]]:
    """(x0, y0, x1, y1) of each label from 1 to `count`; of those without px, empty."""
    rows, columns = np.nonzero(labels)
    values = labels[rows, columns] - 1
    low = np.full((2, count), np.iinfo(np.int64).max)
    high = np.zeros((2, count), np.int64)
    for axis, places in enumerate((columns, rows)):
        np.minimum.at(low[axis], values, places)
        np.maximum.at(high[axis], values, places + 1)
    return [(int(low[0, k]), int(low[1, k]), int(high[0, k]), int(high[1, k])) for k in range(count)]


def _shape(
    maps: PixelMaps,
    labels: NDArray[np.int32],
    label: int,
    box: tuple[int, int, int, int],
    image: RgbImage,
    grey: NDArray[Any],
    um_per_px: float,
    kind: str,
    score: float,
    *,
    nuclei: bool,
) -> Shape | None:
    x0, y0, x1, y1 = box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1
    near = _cut(labels, x0, y0, x1, y1)
    others = (near != label) & (near != 0)
    body = _largest(_enlarged(np.where(others, -4.0, _cut(maps.masks[0], x0, y0, x1, y1))))
    if body is None:
        return None
    filled, contour = body
    lobes, neutral = _nucleus(_cut(maps.masks[1], x0, y0, x1, y1), filled, image, FINE * x0, FINE * y0, um_per_px)
    fine = FINE / FINER
    unit_um2 = (fine * um_per_px) ** 2
    moments = cv2.moments(filled, binaryImage=True)
    centre = Point(
        FINE * x0 + fine * (moments["m10"] / moments["m00"] + 0.5),
        FINE * y0 + fine * (moments["m01"] / moments["m00"] + 0.5),
    )
    outline = _polygon(contour, x0, y0, um_per_px)
    xs, ys = [p.x for p in outline], [p.y for p in outline]
    left, top = int(np.floor(min(xs))), int(np.floor(min(ys)))
    whole = Box(left, top, int(np.ceil(max(xs))) - left, int(np.ceil(max(ys))) - top)
    found = cv2.findContours(lobes, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0] if nuclei else ()
    nucleus = tuple(_polygon(c, x0, y0, um_per_px) for c in found if len(c) > 3 and cv2.contourArea(c) * unit_um2 > 1.0)
    return Shape(
        centre,
        whole,
        outline,
        nucleus,
        cv2.countNonZero(filled) * unit_um2,
        cv2.countNonZero(lobes) * unit_um2,
        _eccentricity(moments),
        measure_focus(grey, whole, um_per_px),
        kind,
        score,
        neutral,
    )


def _nucleus(
    logits: FloatMap, filled: NDArray[np.uint8], image: RgbImage, left: int, top: int, um_per_px: float
) -> tuple[NDArray[np.uint8], float]:
    """The nucleus of the body `filled` (4 h, 4 w), whose logits of nucleus are (h, w) and whose window in the image begins at
    (left, top): like `filled`, and how neutral its colour is."""
    height, width = FINE * logits.shape[0], FINE * logits.shape[1]
    window = _cut(image, left, top, left + width, top + height)
    body = np.asarray(cv2.resize(filled, (width, height), interpolation=cv2.INTER_AREA), np.bool_)
    told = by_colour(np.asarray(cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR)), body, window)
    lobes = (np.asarray(cv2.resize(told, filled.shape[::-1], interpolation=cv2.INTER_LINEAR)) > 0) & (filled > 0)
    seen = body & (told > 0)
    wider = round(AROUND_UM / um_per_px)
    around = image[max(0, top - wider) : top + height + wider, max(0, left - wider) : left + width + wider]
    return lobes.astype(np.uint8), neutrality(window, seen if seen.any() else body, around[::3, ::3].reshape(-1, 3))


def _cut(image: NDArray[Any], x0: int, y0: int, x1: int, y1: int) -> NDArray[Any]:
    """The window of the image; beyond its border the outermost px are repeated."""
    height, width = image.shape[:2]
    inside = image[max(0, y0) : y1, max(0, x0) : x1]
    if x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height:
        return inside
    around = ((max(0, -y0), max(0, y1 - height)), (max(0, -x0), max(0, x1 - width)))
    return np.pad(inside, (*around, (0, 0))[: image.ndim], mode="edge")


def _enlarged(logits: FloatMap) -> NDArray[np.uint8]:
    """(h, w) logits -> (4 h, 4 w) uint8, 1 where the interpolated probability is above a half."""
    chance = 1 / (1 + np.exp(-logits.astype(np.float32)))
    large = cv2.resize(chance, None, fx=FINER, fy=FINER, interpolation=cv2.INTER_LINEAR)
    return np.asarray(large > 0.5, np.uint8)


def _largest(mask: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[Any]] | None:
    """The largest piece, its holes filled, and its contour; None where there is nothing."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return None
    contour = max(contours, key=cv2.contourArea)
    if len(contour) < 4:
        return None
    filled = np.zeros_like(mask)
    cv2.drawContours(filled, [contour], -1, 1, cv2.FILLED)
    return filled, contour


def _polygon(contour: NDArray[Any], x0: int, y0: int, um_per_px: float) -> Outline:
    """A contour through the middles of enlarged px -> simplified, in px of the image, around the whole of those px."""
    fine = FINE / FINER
    points = cv2.approxPolyDP(contour, TOLERANCE_UM / (fine * um_per_px), True)[:, 0].astype(np.float64)
    if len(points) < 4:
        points = contour[:, 0].astype(np.float64)
    away = points - np.add.reduce(points) / len(points)
    points += 0.5 * away / np.maximum(1.0, np.hypot(away[:, 0], away[:, 1]))[:, None] + 0.5
    return tuple(map(Point, *(fine * points + (FINE * x0, FINE * y0)).T.tolist()))


def _eccentricity(m: dict[str, float]) -> float:
    """Of the ellipse with the same second moments: 0 for a circle, towards 1 for a line."""
    spread, skew = m["mu20"] + m["mu02"], np.hypot(m["mu20"] - m["mu02"], 2 * m["mu11"])
    return float(np.sqrt(2 * skew / (spread + skew))) if spread > 0 else 0.0


def measure_focus(grey: NDArray[Any], box: Box, um_per_px: float) -> float:
    """Sharpness: the steepest rise of lightness in the box and 2 px around it, as a share of its range, per um.

    Rise: 99th percentile of the Sobel gradient. Range: from the 2nd to the 98th percentile. Neither light nor stain strength
    enters. An edge blurred with standard deviation s um has 0.4 / s. About 0.6 and more is sharp, below 0.3 blurred.
    """
    around = box.expanded(2)
    inside = grey[max(0, around.y) : around.bottom, max(0, around.x) : around.right]
    if min(inside.shape) < 5:
        return 0.0
    across, down = (np.square(way, dtype=np.int32) for way in cv2.spatialGradient(inside))
    (steepest,) = _shares(across + down, 0.99)  # of whole numbers: floats differ with where they lie in memory
    low, high = _shares(inside, 0.02, 0.98)
    return math.sqrt(steepest) / (8 * max(high - low, 8) * um_per_px)


def _shares(values: NDArray[Any], *shares: float) -> list[int]:
    """The values below which these shares of all lie."""
    places = [round(share * (values.size - 1)) for share in shares]
    found: list[int] = np.partition(values.ravel(), places)[places].tolist()
    return found
