"""One small class per foreign reader, all of one shape: `Reader`.

A reader is one open handle of one process. `Slide` opens one per thread, or one for all threads where the reader is `shared`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
import openslide
import tifffile
import tiffslide
import zarr
from numpy.typing import NDArray
from PIL import Image

from slidescreen.geometry import Box, Size

DEFAULT_BLOCK: Final = 512
MAX_BLOCK_PX: Final = 1 << 22
OPENSLIDE_CACHE: Final = 4 << 20
"""Bytes per handle: blocks are read whole and once, and kept by `Slide`."""
MAX_IMAGE_PX: Final = 200_000_000
UM_PER_UNIT: Final[Mapping[str, float]] = {
    **{"nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6},
    "\u00c5": 1e-4,
}


@dataclass(frozen=True, slots=True)
class StatedScale:
    """um per level-0 px along x and y as the file states it, and the property or tag that states it."""

    x: float
    y: float
    source: str


class Reader(Protocol):
    """An open scan. Level 0 is the finest; `sizes[level]` in px of that level. `shared`: threads may read at the same time."""

    name: str
    shared: bool
    vendor: str
    sizes: tuple[Size, ...]
    stated_scale: StatedScale | None

    def __init__(self, path: Path) -> None: ...

    def block(self, level: int) -> Size:
        """The size in px in which the file is best read: its own tiles or strips."""
        ...

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        """Pixels of `box`, in px of `level` and inside it: (h, w, 3) RGB or (h, w, 4) RGBA uint8, alpha not premultiplied.

        Raises whatever the library raises where pixels cannot be decoded.
        """
        ...

    def close(self) -> None: ...


@runtime_checkable
class ReducingReader(Reader, Protocol):
    """A reader whose decoder yields reduced pixels in less time than whole ones."""

    def reductions(self, level: int) -> tuple[int, ...]:
        """The whole factors, of 2, 4 and 8, by which a level's blocks can be decoded reduced; each divides the block's sides,
        unless the block is the whole level."""
        ...

    def read_reduced(self, level: int, box: Box, factor: int) -> NDArray[np.uint8]:
        """Like `read`, with `box` in px of the level divided by `factor` (rounded up), each of which averages what there is of
        `factor` x `factor` px."""
        ...


def _block(width: int, height: int, limit: Size) -> Size:
    """A block of the file's own tile size, or of a size that suits where that one is tiny or huge."""
    width, height = min(width, limit.width), min(height, limit.height)
    if width < 128 and width < limit.width:
        width = min(limit.width, DEFAULT_BLOCK)
    if height < 128:
        height = min(limit.height, max(1, 128 // max(1, height)) * height)
    if width * height > MAX_BLOCK_PX:
        return Size(min(limit.width, DEFAULT_BLOCK), min(limit.height, DEFAULT_BLOCK))
    return Size(width, height)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


class _OpenSlideLike:
    """What OpenSlide and its pure-Python cousin share: the API, with the prefix of property names differing."""

    name: str
    prefix: str
    shared = False

    def _adopt(self, slide: Any) -> None:
        self._slide = slide
        self._properties: Mapping[str, Any] = slide.properties
        self.sizes = tuple(Size(int(w), int(h)) for w, h in slide.level_dimensions)
        self.vendor = str(self._properties.get(f"{self.prefix}.vendor") or "unknown")
        x, y = (_number(self._properties.get(f"{self.prefix}.mpp-{axis}")) for axis in "xy")
        source = f"{self.prefix}.mpp-x"
        if self.vendor in ("generic-tiff", "unknown") and self._properties.get("tiff.XResolution") is not None:
            source += " (TIFF XResolution tag)"
        self.stated_scale = StatedScale(x, y, source) if x is not None and y is not None else None

    def block(self, level: int) -> Size:
        limit = self.sizes[level]
        sides = [
            _number(self._properties.get(f"{self.prefix}.level[{level}].tile-{s}")) or DEFAULT_BLOCK
            for s in ("width", "height")
        ]
        return _block(int(sides[0]), int(sides[1]), limit)

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        downsample = self._slide.level_downsamples[level]
        corner = (round(box.x * downsample), round(box.y * downsample))
        return np.asarray(self._slide.read_region(corner, level, (box.width, box.height)))

    def close(self) -> None:
        self._slide.close()


class OpenSlideReader(_OpenSlideLike):
    """OpenSlide: the vendors' formats and tiled pyramidal TIFF."""

    name = "openslide"
    prefix = "openslide"

    def __init__(self, path: Path) -> None:
        slide = openslide.OpenSlide(path)
        slide.set_cache(openslide.OpenSlideCache(OPENSLIDE_CACHE))
        try:
            self._adopt(slide)
            if self.vendor == "generic-tiff":
                with tifffile.TiffFile(path) as tiff:
                    require_rgb(tiff.pages.first)
        except BaseException:
            slide.close()
            raise


class TiffSlideReader(_OpenSlideLike):
    """tiffslide: TIFFs that OpenSlide refuses, among them pyramids in SubIFDs."""

    name = "tiffslide"
    prefix = "tiffslide"

    def __init__(self, path: Path) -> None:
        slide = tiffslide.TiffSlide(path)
        try:
            require_rgb(slide.ts_tifffile.series[0].keyframe)
            self._adopt(slide)
        except BaseException:
            slide.close()
            raise


def require_rgb(page: Any) -> None:
    """Raise ValueError unless a TIFF page is 8-bit RGB (also stored as YCbCr) with or without alpha; CMYK is not."""
    colours = (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
    samples = 3 + len(page.extrasamples)
    if page.dtype != np.uint8 or page.photometric not in colours or page.samplesperpixel != samples or samples > 4:
        kind = getattr(page.photometric, "name", page.photometric)
        raise ValueError(f"not an 8-bit RGB image ({kind}, {page.samplesperpixel} x {page.bitspersample} bit)")


class TifffileReader:
    """tifffile and zarr: flat TIFF, striped TIFF, OME-TIFF with SubIFD pyramids."""

    name = "tifffile"
    shared = False

    def __init__(self, path: Path) -> None:
        self._tiff = tifffile.TiffFile(path)
        try:
            series = self.series(self._tiff)
            require_rgb(series.keyframe)
            if set(series.axes) != set("YXS"):
                raise ValueError(f"not a plain image (axes {series.axes})")
            self._planar = series.axes.startswith("S")
            self._pages = [level.keyframe for level in series.levels]
            self.sizes = tuple(Size(p.imagewidth, p.imagelength) for p in self._pages)
            self._arrays = [zarr.open_array(series.aszarr(level=i), mode="r") for i in range(len(series.levels))]
            self.vendor = "ome" if self._tiff.is_ome else "generic-tiff"
            self.stated_scale = self._ome_scale() or self._tag_scale()
        except BaseException:
            self._tiff.close()
            raise

    @staticmethod
    def series(tiff: tifffile.TiffFile) -> Any:
        """The series of the file that is read: the one with the most px."""
        return max(tiff.series, key=lambda s: math.prod(s.shape))

    def _ome_scale(self) -> StatedScale | None:
        if not self._tiff.is_ome or not self._tiff.ome_metadata:
            return None
        image = tifffile.xml2dict(self._tiff.ome_metadata).get("OME", {}).get("Image", {})
        pixels = (image[0] if isinstance(image, list) else image).get("Pixels", {})
        sides = []
        for axis in "XY":
            size = _number(pixels.get(f"PhysicalSize{axis}"))
            factor = UM_PER_UNIT.get(str(pixels.get(f"PhysicalSize{axis}Unit", "µm")))
            if size is None or factor is None:
                return None
            sides.append(size * factor)
        return StatedScale(sides[0], sides[1], "OME-XML PhysicalSizeX")

    def _tag_scale(self) -> StatedScale | None:
        tags = self._pages[0].tags
        unit = {2: 25_400.0, 3: 10_000.0}.get(int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 2)
        if unit is None or "XResolution" not in tags or "YResolution" not in tags:
            return None
        sides = []
        for axis in "XY":
            numerator, denominator = tags[f"{axis}Resolution"].value
            if not numerator or not denominator:
                return None
            sides.append(unit * denominator / numerator)
        return StatedScale(sides[0], sides[1], "TIFF XResolution tag")

    def block(self, level: int) -> Size:
        page = self._pages[level]
        if page.is_tiled:
            return _block(page.tilewidth, page.tilelength, self.sizes[level])
        return _block(page.imagewidth, page.rowsperstrip, self.sizes[level])

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        rows, columns = slice(box.y, box.bottom), slice(box.x, box.right)
        array = self._arrays[level]
        if self._planar:
            return np.moveaxis(np.asarray(array[:, rows, columns]), 0, -1)
        return np.asarray(array[rows, columns])

    def close(self) -> None:
        self._tiff.close()


class ImageReader:
    """Pillow: a plain PNG, JPEG, WebP or BMP image, read whole. For single fields, up to 200 megapixels."""

    name = "pillow"
    shared = True
    vendor = "image"
    stated_scale: StatedScale | None = None

    def __init__(self, path: Path) -> None:
        with _open_image(path, ("PNG", "JPEG", "WEBP", "BMP")) as image:
            self._pixels = np.asarray(image.convert("RGBA" if image.mode in ("RGBA", "LA", "P") else "RGB"))
        self.sizes: tuple[Size, ...] = (Size(self._pixels.shape[1], self._pixels.shape[0]),)

    def block(self, level: int) -> Size:
        return _block(DEFAULT_BLOCK, DEFAULT_BLOCK, self.sizes[level])

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        return self._pixels[box.y : box.bottom, box.x : box.right]

    def close(self) -> None:
        pass


from slidescreen.slide.tiled_tiff import TiledTiffReader  # noqa: E402

READERS: Final[tuple[type[Reader], ...]] = (TiledTiffReader, OpenSlideReader, TiffSlideReader, TifffileReader, ImageReader)
"""In the order in which they are tried."""


def _open_image(path: Path, formats: tuple[str, ...] | None) -> Image.Image:
    """Raises ValueError for more than 200 megapixels, before anything is decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(path, formats=formats)
        except Image.DecompressionBombError as error:
            raise ValueError(f"too large for a plain image; use a tiled TIFF ({error})") from error
    if image.width * image.height > MAX_IMAGE_PX:
        image.close()
        raise ValueError(f"{image.width} x {image.height} px is too large for a plain image; use a tiled TIFF")
    return image


def read_image(path: Path) -> NDArray[np.uint8]:
    """A single image of any format Pillow knows -> (h, w, 3) uint8 RGB, alpha dropped as Matek et al. 2019 do.

    Raises OSError or ValueError when it cannot be decoded or is too large.
    """
    with _open_image(path, None) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"not an 8-bit RGB image (mode {image.mode})")
        return np.asarray(image.convert("RGB"))
