"""Tiled TIFF of plain geometry, of any vendor: tiles are decoded whole, one handle serves all threads.

Geometry is plain when each level is one page of tiles that lie side by side. What is not plain is refused, and left to the
readers that know the vendor. Vendor, levels and scale are taken from OpenSlide where it opens the file, else from the tags.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import openslide
import tifffile
from numpy.typing import NDArray

from slidescreen.geometry import Box, Size
from slidescreen.slide.location import require_local
from slidescreen.slide.reader import Reader
from slidescreen.slide.readers.openslide import OpenSlideReader
from slidescreen.slide.readers.tiff import TifffileReader, require_rgb
from slidescreen.slide.tile_codecs import COMPRESSIONS, IMAGES, JPEG, TileCodec, has_end

PLAIN_VENDORS: Final = ("aperio", "generic-tiff", "ome", "precipoint")
"""Of other vendors the tiles with the most detail are compared with OpenSlide's reading of them."""
COMPARED_TILES: Final = 3
MOST_DIFFERENCE: Final = 2.0
"""Mean grey levels by which they may differ."""
MAX_TILE_PX: Final = 1 << 24
MIN_BLOCK: Final = 128
BLOCK: Final = 512
"""Tiles narrower or lower than 128 px are joined to blocks of about 512 px."""


@dataclass(frozen=True, slots=True, eq=False)
class TiledLevel:
    """One level: its size and its tiles'; where each tile lies in the file, row by row, (samples or 1, rows, columns) int64."""

    size: Size
    tile: Size
    codec: TileCodec
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]

    @property
    def block(self) -> Size:
        """Whole tiles, several where they are small."""
        sides = ((self.tile.width, self.size.width), (self.tile.height, self.size.height))
        return Size(*(min(most, t if t >= MIN_BLOCK else BLOCK // t * t) for t, most in sides))


class TiledTiffReader:
    """See the module. `shared`: reads are positional, so that threads need no handles of their own."""

    name = "tiled-tiff"
    shared = True

    def __init__(self, path: Path) -> None:
        require_local(path)
        with tifffile.TiffFile(path) as tiff:
            source = _source(path, tiff)
            try:
                self.vendor, self.sizes = source.vendor, source.sizes
                self.stated_scale, self.details = source.stated_scale, source.details
                levels = tuple(_plain(page) for page in _pages(tiff, source))
                if self.vendor == "aperio" and not all(level.counts.all() for level in levels[1:]):
                    raise ValueError("tiles are missing that are to be filled from finer levels")
                self._file = os.open(path, os.O_RDONLY)
                try:
                    self._levels = tuple(self._checked(level) for level in levels)
                    if self.vendor not in PLAIN_VENDORS:
                        self._compare(source)
                except BaseException:
                    self.close()
                    raise
            finally:
                source.close()

    def block(self, level: int) -> Size:
        return self._levels[level].block

    def reductions(self, level: int) -> tuple[int, ...]:
        """Factors by which `read_reduced` reads."""
        return self._levels[level].codec.reductions

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        return self._stitched(self._levels[level], box, 1)

    def read_reduced(self, level: int, box: Box, factor: int) -> NDArray[np.uint8]:
        """Pixels of `box`, in px of the level divided by `factor` (rounded up): each the mean of `factor` x `factor` px, near
        enough; the last column and row average what there is."""
        return self._stitched(self._levels[level], box, factor)

    def close(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def _stitched(self, level: TiledLevel, box: Box, factor: int) -> NDArray[np.uint8]:
        width, height = level.tile.width // factor, level.tile.height // factor
        column, row = box.x // width, box.y // height
        if (box.right - 1) // width == column and (box.bottom - 1) // height == row:
            return _cut(self._tile(level, column, row, factor), box, Box(column * width, row * height, width, height))
        parts = []
        for row in range(box.y // height, (box.bottom - 1) // height + 1):
            for column in range(box.x // width, (box.right - 1) // width + 1):
                parts.append((Box(column * width, row * height, width, height), self._tile(level, column, row, factor)))
        samples = 4 if any(tile is None or tile.shape[2] == 4 for _, tile in parts) else 3
        out = np.full((box.height, box.width, samples), 255, np.uint8)
        for place, tile in parts:
            inside = box.intersect(place)
            cut = _cut(tile, inside, place)
            out[inside.y - box.y : inside.bottom - box.y, inside.x - box.x : inside.right - box.x, : cut.shape[2]] = cut
        return out

    def _tile(self, level: TiledLevel, column: int, row: int, factor: int) -> NDArray[np.uint8] | None:
        """A whole tile, or one that the border cuts, without what lies beyond it; None where the file holds none."""
        data = [self._bytes(level, plane, row, column) for plane in range(len(level.counts))]
        if not all(data):
            return None
        right, bottom = (column + 1) * level.tile.width, (row + 1) * level.tile.height
        if factor > 1 and right <= level.size.width and bottom <= level.size.height:
            return level.codec.decode_reduced(data[0], factor)
        planes = [level.codec.decode(part) for part in data]
        tile = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
        if factor == 1:
            return tile
        width, height = min(0, level.size.width - right) or None, min(0, level.size.height - bottom) or None
        return _averaged(tile[:height, :width], factor)

    def _bytes(self, level: TiledLevel, plane: int, row: int, column: int) -> bytes:
        offset, count = int(level.offsets[plane, row, column]), int(level.counts[plane, row, column])
        if count > 2 * level.tile.area * level.codec.shape[2] + (1 << 16):
            raise ValueError(f"a tile of {count} bytes")
        data = os.pread(self._file, count, offset) if count else b""
        if len(data) < count:
            raise OSError(f"the file ends at {len(data)} of a tile's {count} bytes")
        return data

    def _checked(self, level: TiledLevel) -> TiledLevel:
        """JPEG ends with a mark. Where a level's first tile does, one that does not has been cut, and is refused."""
        if level.codec.compression != JPEG or not level.counts.any():
            return level
        row, column = np.argwhere(level.counts[0])[0].tolist()
        return replace(level, codec=replace(level.codec, ends=has_end(self._bytes(level, 0, row, column))))

    def _compare(self, source: Reader) -> None:
        """Raise ValueError unless the tiles with the most bytes show what OpenSlide shows there."""
        for number, level in enumerate(self._levels):
            for index in np.argsort(level.counts[0], axis=None)[-COMPARED_TILES:].tolist():
                row, column = divmod(index, level.counts.shape[2])
                box = Box(column * level.tile.width, row * level.tile.height, level.tile.width, level.tile.height)
                box = box.intersect(Box(0, 0, level.size.width, level.size.height))
                ours, theirs = self.read(number, box), source.read(number, box)
                off = float(np.abs(ours[..., :3].astype(int) - theirs[..., :3]).mean())
                if off > MOST_DIFFERENCE:
                    raise ValueError(f"the tiles of {self.vendor} do not lie side by side")


def _source(path: Path, tiff: tifffile.TiffFile) -> Reader:
    """The reader that tells vendor, levels and scale."""
    if not hasattr(os, "pread"):
        raise ValueError("this system has no positional reads")
    if not tiff.is_ome and tiff.pages.first.subifds is None:
        try:
            return OpenSlideReader(path)
        except openslide.OpenSlideError:
            pass
    return TifffileReader(path, COMPRESSIONS)


def _pages(tiff: tifffile.TiffFile, source: Reader) -> list[Any]:
    """The page of each level. Raises ValueError where a level is no one page."""
    if isinstance(source, TifffileReader):
        return [level.keyframe for level in max(tiff.series, key=lambda s: math.prod(s.shape)).levels]
    pages: dict[Size, list[Any]] = {}
    for page in tiff.pages:
        if isinstance(page, tifffile.TiffPage) and page.is_tiled:
            pages.setdefault(Size(page.imagewidth, page.imagelength), []).append(page)
    found = [pages.get(size, []) for size in source.sizes]
    if not all(len(same) == 1 for same in found):
        raise ValueError(f"the levels of {source.vendor} are no pages of tiles")
    return [same[0] for same in found]


def _plain(page: Any) -> TiledLevel:
    """Raises ValueError, naming it, for whatever is not plain."""
    if not page.is_tiled:
        raise ValueError("not tiled")
    require_rgb(page)
    separate = int(page.planarconfig) == 2
    compression, predictor = int(page.compression), int(page.predictor)
    size, tile = Size(page.imagewidth, page.imagelength), Size(page.tilewidth, page.tilelength)
    odd = {
        "in depth": page.imagedepth != 1 or page.tiledepth != 1,
        f"compression {compression}": compression not in COMPRESSIONS,
        f"predictor {predictor}": predictor not in (1, 2),
        "YCbCr without JPEG": page.photometric == tifffile.PHOTOMETRIC.YCBCR and compression != JPEG,
        "images of one sample": separate and compression in IMAGES,
        "alpha of another kind": any(int(extra) != 2 for extra in page.extrasamples)
        or (page.extrasamples and compression == JPEG),
        "bits reversed": int(page.fillorder) != 1,
        "turned": page.tags.valueof("Orientation", 1) != 1,
        "tiles too large": tile.area > MAX_TILE_PX,
    }
    for what, is_so in odd.items():
        if is_so:
            raise ValueError(f"not plain: {what}")
    samples = page.samplesperpixel
    grid = (samples if separate else 1, -(-size.height // tile.height), -(-size.width // tile.width))
    offsets, counts = (np.array(table, np.int64) for table in (page.dataoffsets, page.databytecounts))
    if not len(offsets) == len(counts) == grid[0] * grid[1] * grid[2]:
        raise ValueError(f"tables of {len(offsets)} and {len(counts)} tiles in place of {grid[0] * grid[1] * grid[2]}")
    tables = bytes(page.jpegtables or b"") if compression == JPEG else b""
    rgb = page.photometric == tifffile.PHOTOMETRIC.RGB
    codec = TileCodec(compression, (tile.height, tile.width, samples), separate, predictor == 2, tables, rgb)
    return TiledLevel(size, tile, codec, offsets.reshape(grid), counts.reshape(grid))


def _cut(tile: NDArray[np.uint8] | None, inside: Box, place: Box) -> NDArray[np.uint8]:
    """The part of a tile at `place`; transparent where there is no tile."""
    if tile is None:
        return np.broadcast_to(np.zeros(4, np.uint8), (inside.height, inside.width, 4))
    return tile[inside.y - place.y : inside.bottom - place.y, inside.x - place.x : inside.right - place.x]


def _averaged(tile: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Mean of `factor` x `factor` px; the border is repeated where the last ones are not whole."""
    height, width = -(-tile.shape[0] // factor), -(-tile.shape[1] // factor)
    lower, right = height * factor - tile.shape[0], width * factor - tile.shape[1]
    padded = cv2.copyMakeBorder(tile, 0, lower, 0, right, cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(padded, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
