"""The area the user chose: x,y,w,h or a GeoJSON file, in level-0 px."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from slidescreen.errors import UsageError
from slidescreen.monolayer.classes import MonolayerSettings

Ring = tuple[tuple[float, float], ...]
Polygon = tuple[Ring, ...]


def with_aoi(settings: MonolayerSettings, text: str) -> MonolayerSettings:
    """The settings with the area named by `text`: auto, all, x,y,w,h or a GeoJSON file of polygons, as QuPath writes it.

    Raises UsageError in one line when it is none of these.
    """
    if text in ("auto", "all"):
        return dataclasses.replace(settings, aoi=text, polygons=())
    polygons = _rectangle(text) if _is_rectangle(text) else _read_geojson(Path(text))
    return dataclasses.replace(settings, aoi=text, polygons=polygons)


def blocks_in(polygons: tuple[Polygon, ...], shape: tuple[int, ...], block_px: float) -> NDArray[np.bool_]:
    """(rows, columns) bool: the blocks that the polygons touch. Holes are open where they cover whole blocks."""
    rows, columns = shape[:2]
    fine = 4  # steps per block; finer than any cell's own size
    inside = np.zeros((rows * fine, columns * fine), np.uint8)
    for polygon in polygons:
        rings = [np.floor(np.clip(np.array(ring) * (fine / block_px), -1e6, 1e6)).astype(np.int32) for ring in polygon]
        one = np.zeros_like(inside)
        cv2.fillPoly(one, rings, 1)
        inside |= one
    return np.asarray(inside.reshape(rows, fine, columns, fine).max((1, 3)) > 0)


def within(polygons: tuple[Polygon, ...]) -> Callable[[float, float], bool]:
    """Tells of a level-0 point whether it lies in one of the polygons, its border included, and in none of that one's holes."""
    areas = [[np.array(ring, np.float32) for ring in polygon] for polygon in polygons]  # once: it is asked of every body

    def holds(x: float, y: float) -> bool:
        return any(
            cv2.pointPolygonTest(outer, (x, y), False) >= 0
            and all(cv2.pointPolygonTest(hole, (x, y), False) <= 0 for hole in holes)
            for outer, *holes in areas
        )

    return holds


def touches(polygons: tuple[Polygon, ...], width: float, height: float) -> bool:
    """Whether what encloses one of the polygons overlaps an image of this size."""
    corners = [(np.min(outer, axis=0), np.max(outer, axis=0)) for outer, *_ in polygons]
    return any((low < (width, height)).all() and (high > 0).all() for low, high in corners)


def _is_rectangle(text: str) -> bool:
    return "," in text and not any(c.isalpha() or c in "/\\" for c in text)


def _rectangle(text: str) -> tuple[Polygon, ...]:
    try:
        x, y, width, height = (float(part) for part in text.split(","))
    except ValueError:  # not numbers, or not four of them
        raise UsageError(f"--aoi {text}: not four numbers; give x,y,w,h in level-0 px, for instance 0,0,20000,15000") from None
    if not (width > 0 and height > 0 and all(map(math.isfinite, (x, y, width, height)))):
        raise UsageError(f"--aoi {text}: width and height must be above 0; give x,y,w,h in level-0 px")
    return ((((x, y), (x + width, y), (x + width, y + height), (x, y + height)),),)


def _read_geojson(path: Path) -> tuple[Polygon, ...]:
    hint = "use auto, all, x,y,w,h or a GeoJSON file of polygons in level-0 px"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--aoi {path}: cannot be read ({error.strerror or error}); {hint}") from error
    except ValueError as error:
        raise UsageError(f"--aoi {path}: not valid JSON ({' '.join(str(error).split())[:80]}); {hint}") from error
    try:
        polygons = tuple(_polygons(content))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = str(error) if isinstance(error, ValueError) else "a feature lacks its type or its coordinates"
        raise UsageError(f"--aoi {path}: not valid GeoJSON ({reason}); {hint}") from error
    if not polygons:
        raise UsageError(f"--aoi {path}: holds no polygon; draw an area, not a point or a line")
    return polygons


def _polygons(node: Any) -> list[Polygon]:
    """All polygons of a GeoJSON object, a bare list of features included."""
    if isinstance(node, list):
        return [polygon for part in node for polygon in _polygons(part)]
    kind = node["type"]
    if kind == "FeatureCollection":
        return _polygons(node["features"])
    if kind == "Feature":
        return _polygons(node["geometry"]) if node["geometry"] else []
    if kind == "GeometryCollection":
        return _polygons(node["geometries"])
    if kind == "Polygon":
        return [_polygon(node["coordinates"])]
    return [_polygon(rings) for rings in node["coordinates"]] if kind == "MultiPolygon" else []


def _polygon(rings: Any) -> Polygon:
    polygon = tuple(tuple((float(point[0]), float(point[1])) for point in ring) for ring in rings)
    if not polygon or any(len(ring) < 3 or not all(math.isfinite(v) for p in ring for v in p) for ring in polygon):
        raise ValueError("a polygon needs rings of three or more points")
    return polygon
