"""What every reader of foreign formats looks like: `Reader`, one open handle of one process.

`Slide` opens one per thread, or one for all threads where the reader is `shared`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from slidescreen.geometry import Box, Size

DEFAULT_BLOCK: Final = 512
MAX_BLOCK_PX: Final = 1 << 22
MAX_SIDE: Final = 1 << 20
"""px: at 0.03 um/px the length of a slide's glass is 2.5 million px, of its largest smear less than half of that."""
MAX_IMAGE_PX: Final = 200_000_000
"""What is decoded in one piece: 600 MB of RGB."""
MAX_TILE_PX: Final = 1 << 26


@dataclass(frozen=True, slots=True)
class StatedScale:
    """um per level-0 px along x and y as the file states it, and the property or tag that states it."""

    x: float
    y: float
    source: str


@dataclass(frozen=True, slots=True)
class Details:
    """What a file tells beside its pixels.

    `objective_power`: nominal magnification, told and never used. `icc_profile`: bytes of the embedded colour profile.
    `images`: names of images beside the scan (label, macro). `other_scales`: what else the file states of its scale, in
    other tags. `notes`: what the user should know of the way it is stored.
    """

    objective_power: float | None = None
    icc_profile: bytes | None = None
    images: tuple[str, ...] = ()
    other_scales: tuple[StatedScale, ...] = ()
    notes: tuple[str, ...] = ()


class Reader(Protocol):
    """An open scan. Level 0 is the finest; `sizes[level]` in px of that level. `shared`: threads may read at the same time."""

    name: str
    shared: bool
    vendor: str
    sizes: tuple[Size, ...]
    stated_scale: StatedScale | None
    details: Details

    def __init__(self, path: Path) -> None: ...

    def block(self, level: int) -> Size:
        """The size in px in which the file is best read: its own tiles or strips."""
        ...

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        """Pixels of `box`, in px of `level` and inside it: (h, w, 3) RGB or (h, w, 4) RGBA uint8, alpha not premultiplied.
        Alpha is 0 where the file holds no pixels because none were scanned.

        Raises whatever the library raises where pixels cannot be decoded.
        """
        ...

    def close(self) -> None: ...


@runtime_checkable
class ReducingReader(Reader, Protocol):
    """A reader whose decoder may yield reduced pixels in less time than whole ones."""

    def reductions(self, level: int) -> tuple[int, ...]:
        """The factors, of 2, 4 and 8, by which a level's blocks can be decoded reduced; each divides the block's sides, unless
        the block is as wide or high as the level."""
        ...

    def read_reduced(self, level: int, box: Box, factor: int) -> NDArray[np.uint8]:
        """Like `read`, with `box` in px of the level divided by `factor` (rounded up), each of which averages what there is of
        `factor` x `factor` px."""
        ...


def block_of(width: int, height: int, limit: Size) -> Size:
    """A block of the file's own tile size, or of a size that suits where that one is tiny or huge."""
    width, height = min(width, limit.width), min(height, limit.height)
    if width < 128 and width < limit.width:
        width = min(limit.width, DEFAULT_BLOCK)
    if height < 128:
        height = min(limit.height, max(1, 128 // max(1, height)) * height)
    if width * height > MAX_BLOCK_PX:
        return Size(min(limit.width, DEFAULT_BLOCK), min(limit.height, DEFAULT_BLOCK))
    return Size(width, height)


def number(value: Any) -> float | None:
    """A finite number, or None."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def scale_of(x: Any, y: Any, source: str, factor: float = 1.0) -> StatedScale | None:
    """A stated scale out of what a file says, or None where it says no positive numbers."""
    sides = [number(x), number(y)]
    if any(side is None or side <= 0 for side in sides):
        return None
    return StatedScale(float(x) * factor, float(y) * factor, source)


def require_sizes(sizes: tuple[Size, ...]) -> None:
    """Raise ValueError for sides that no slide can have, and for levels that are no reductions of the first."""
    for level, size in enumerate(sizes):
        if max(size.width, size.height) > MAX_SIDE:
            raise ValueError(f"level {level} claims {size.width} x {size.height} px; no slide is that large")
        down = (sizes[0].width / size.width, sizes[0].height / size.height)
        slack = 0.05 * max(down) + 4 * max(down[0] / size.width, down[1] / size.height)
        if abs(down[0] - down[1]) > slack or min(down) < 0.999:
            first = f"{sizes[0].width} x {sizes[0].height}"
            raise ValueError(f"level {level} of {size.width} x {size.height} px is no reduction of level 0 ({first} px)")
