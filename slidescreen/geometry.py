"""Points, sizes and boxes in pixels, and the step between um and px.

The frame is level-0 px, origin at the top left of the scan, x to the right, y down, unless a docstring names another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


class Point(NamedTuple):
    """A position in px."""

    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Size:
    """Whole px, both at least 1. Raises ValueError otherwise."""

    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"size {self.width} x {self.height} px: both sides must be at least 1")

    @property
    def area(self) -> int:
        """Area in px^2."""
        return self.width * self.height


@dataclass(frozen=True, slots=True)
class Box:
    """Half-open rectangle [x, x + width) x [y, y + height) in whole px; may lie partly outside the scan.

    Raises ValueError when a side is negative; an empty box is allowed.
    """

    x: int
    y: int
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 0 or self.height < 0:
            raise ValueError(f"box of {self.width} x {self.height} px: sides must not be negative")

    @classmethod
    def around(cls, centre: Point, side: int) -> Box:
        """The square of `side` px whose middle lies nearest to `centre`."""
        return cls(math.floor(centre.x - side / 2 + 0.5), math.floor(centre.y - side / 2 + 0.5), side, side)

    @property
    def right(self) -> int:
        """First column beyond the box."""
        return self.x + self.width

    @property
    def bottom(self) -> int:
        """First row beyond the box."""
        return self.y + self.height

    @property
    def centre(self) -> Point:
        """The middle of the box."""
        return Point(self.x + self.width / 2, self.y + self.height / 2)

    def contains(self, point: Point) -> bool:
        """Whether the point lies in the half-open box: of boxes that tile a plane exactly one contains it."""
        return self.x <= point.x < self.right and self.y <= point.y < self.bottom

    def intersect(self, other: Box) -> Box:
        """The common part; an empty box (a side of 0) where there is none."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        return Box(x, y, max(0, min(self.right, other.right) - x), max(0, min(self.bottom, other.bottom) - y))

    def expanded(self, margin: int) -> Box:
        """The box grown by `margin` px on every side."""
        return Box(self.x - margin, self.y - margin, self.width + 2 * margin, self.height + 2 * margin)


def um_to_px(um: float, um_per_px: float) -> float:
    """Length in um -> length in px."""
    return um / um_per_px


def area_mm2(px: float, um_per_px: float) -> float:
    """Area in px^2 -> area in mm^2."""
    return px * um_per_px**2 * 1e-6
