"""TIFF of any layout that is plain 8-bit RGB, by tifffile and imagecodecs: flat, striped, pyramids in SubIFDs, URLs."""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

import numpy as np
import tifffile
from numpy.typing import NDArray

from slidescreen.geometry import Box, Size
from slidescreen.slide.frame_size import HEADER_BYTES, require_frame
from slidescreen.slide.location import is_remote
from slidescreen.slide.reader import MAX_IMAGE_PX, Details, StatedScale, block_of, require_sizes
from slidescreen.slide.tiff_metadata import read_statements

JPEG_LIKE: Final = frozenset({7, 33003, 33005, 34712})
"""TIFF's Compression tags of JPEG and JPEG 2000, whose data claim a size of their own."""
COMPRESSIONS: Final = JPEG_LIKE | {1, 5, 8, 32773, 32946, 34927, 50000, 50001}
"""Of which no data unfold to more than a tile, or not far beyond (WebP: 16383 px a side)."""
MARGIN: Final = 1 << 16
"""Bytes of headers and of what does not compress."""
OVERLAPPING: Final = "its tiles overlap, and only OpenSlide knows how to place them"


class TifffileReader:
    """tifffile and zarr: flat TIFF, striped TIFF, OME-TIFF with SubIFD pyramids, and TIFFs behind URLs."""

    name = "tifffile"
    shared = False

    def __init__(self, path: Path, compressions: Collection[int] = COMPRESSIONS) -> None:
        self._file = path.open("rb") if is_remote(path) else None
        self._tiff = tifffile.TiffFile(self._file or path)
        try:
            series = max(self._tiff.series, key=lambda s: math.prod(s.shape))
            self._require_plain(series, compressions)
            self._planar = series.axes.startswith("S")
            self._pages = [level.keyframe for level in series.levels]
            self.sizes = tuple(Size(p.imagewidth, p.imagelength) for p in self._pages)
            require_sizes(self.sizes)
            import zarr  # slow to load: only where it reads

            self._arrays = [zarr.open_array(series.aszarr(level=i), mode="r") for i in range(len(series.levels))]
            self._absent = [_absent_tiles(page) for page in self._pages]
            said = read_statements(self._tiff)
            self.vendor = said.vendor or "generic-tiff"
            self.stated_scale: StatedScale | None = said.scales[0] if said.scales else None
            names = tuple(sorted({s.name.lower() for s in self._tiff.series} & {"label", "macro", "thumbnail"}))
            self.details = Details(said.objective_power, said.icc_profile, names, said.scales[1:], self._notes())
        except BaseException:
            self.close()
            raise

    def _require_plain(self, series: Any, compressions: Collection[int]) -> None:
        require_rgb(series.keyframe)
        if self._tiff.is_bif or (self._tiff.pages.first.software or "").startswith("MedScan"):
            raise ValueError(OVERLAPPING)
        if set(series.axes) != set("YXS"):
            raise ValueError(f"not a plain image (axes {series.axes})")
        for level in series.levels:
            if self._is_split(level.keyframe):
                raise ValueError("each sample is an image of its own")
            if int(level.keyframe.compression) not in compressions:
                raise ValueError(f"compression {level.keyframe.compression!s} is not read")
            piece = math.prod(level.keyframe.chunks[:3])
            if piece > 3 * MAX_IMAGE_PX:
                raise ValueError(
                    f"stored in pieces of {piece // 3_000_000} megapixels, each to be decoded whole; use a tiled TIFF"
                )

    @staticmethod
    def _is_split(page: Any) -> bool:
        return int(page.planarconfig) == 2 and int(page.compression) in JPEG_LIKE

    def _notes(self) -> tuple[str, ...]:
        page = self._pages[0]
        if page.is_tiled or page.imagelength * page.imagewidth < 1 << 24:
            return ()
        return (f"stored in strips of {page.imagewidth} x {page.rowsperstrip} px, which is slow to read",)

    @property
    def sparse(self) -> bool:
        """Whether tiles are missing."""
        return any(absent is not None for absent in self._absent)

    def block(self, level: int) -> Size:
        page = self._pages[level]
        if page.is_tiled:
            return block_of(page.tilewidth, page.tilelength, self.sizes[level])
        return block_of(page.imagewidth, page.rowsperstrip, self.sizes[level])

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        self.require_pieces(level, box)
        rows, columns = slice(box.y, box.bottom), slice(box.x, box.right)
        array = self._arrays[level]
        pixels = np.asarray(array[:, rows, columns] if self._planar else array[rows, columns])
        pixels = np.moveaxis(pixels, 0, -1) if self._planar else pixels
        absent = self._absent[level]
        return pixels if absent is None else _without(pixels, absent, self._pages[level], box)

    def require_pieces(self, level: int, box: Box) -> None:
        """Raise ValueError for tiles or strips whose bytes are too many or beyond the file, or hold an image that claims to be
        larger than the piece: room would be made for them."""
        page, end = self._pages[level], self._tiff.filehandle.size
        width, height = (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)
        columns, rows = -(-page.imagewidth // width), -(-page.imagelength // height)
        for plane in range(page.samplesperpixel if self._planar else 1):
            for row in range(box.y // height, (box.bottom - 1) // height + 1):
                for column in range(box.x // width, (box.right - 1) // width + 1):
                    index = (plane * rows + row) * columns + column
                    offset, count = page.dataoffsets[index], page.databytecounts[index]
                    if count > 2 * width * height * page.samplesperpixel + MARGIN or offset + count > end:
                        raise ValueError(f"a piece of {count} bytes at byte {offset} of {end}")
                    if int(page.compression) in JPEG_LIKE and count:
                        require_frame(self._head(offset, min(count, HEADER_BYTES)), width, height)

    def _head(self, offset: int, count: int) -> bytes:
        handle = self._tiff.filehandle
        with handle.lock or nullcontext():
            handle.seek(offset)
            return bytes(handle.read(count))

    def close(self) -> None:
        self._tiff.close()
        if self._file is not None:
            self._file.close()


def require_rgb(page: Any) -> None:
    """Raise ValueError unless a TIFF page is 8-bit RGB (also stored as YCbCr) with or without alpha; CMYK is not."""
    colours = (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
    samples = 3 + len(page.extrasamples)
    if page.dtype != np.uint8 or page.photometric not in colours or page.samplesperpixel != samples or samples > 4:
        kind = getattr(page.photometric, "name", page.photometric)
        raise ValueError(f"not an 8-bit RGB image ({kind}, {page.samplesperpixel} x {page.bitspersample} bit)")


def _absent_tiles(page: Any) -> NDArray[np.bool_] | None:
    """(rows, columns) of the tiles that the file leaves out (no offset or no bytes: sparse TIFF); None where it has all."""
    if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
        return None
    height, width = page.chunks[0], page.chunks[1]
    rows, columns = -(-page.imagelength // height), -(-page.imagewidth // width)
    counts, offsets = np.asarray(page.databytecounts), np.asarray(page.dataoffsets)
    if len(counts) < rows * columns or len(offsets) < rows * columns:
        raise ValueError(f"a table of {min(len(counts), len(offsets))} tiles in place of {rows * columns}")
    absent = ((counts == 0) | (offsets == 0))[: rows * columns].reshape(rows, columns)
    return absent if absent.any() else None


def _without(pixels: NDArray[np.uint8], absent: NDArray[np.bool_], page: Any, box: Box) -> NDArray[np.uint8]:
    """The pixels with alpha 0 where the file has no tile."""
    rows = np.arange(box.y, box.bottom) // page.chunks[0]
    columns = np.arange(box.x, box.right) // page.chunks[1]
    here = absent[np.ix_(rows, columns)]
    if not here.any():
        return pixels
    alpha = pixels[..., 3] if pixels.shape[-1] == 4 else np.full(pixels.shape[:2], 255, np.uint8)
    return np.dstack([pixels[..., :3], np.where(here, 0, alpha).astype(np.uint8)])
