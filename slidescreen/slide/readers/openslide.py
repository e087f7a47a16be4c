"""The vendors' formats and tiled pyramidal TIFF, by OpenSlide."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import openslide
import tifffile
from numpy.typing import NDArray
from PIL import ImageCms

from slidescreen.geometry import Box, Size
from slidescreen.slide.location import require_local
from slidescreen.slide.reader import DEFAULT_BLOCK, Details, StatedScale, block_of, number, require_sizes, scale_of
from slidescreen.slide.readers.tiff import require_rgb
from slidescreen.slide.tiff_metadata import TiffStatements, read_statements

CACHE: Final = 4 << 20
"""Bytes per handle: blocks are read whole and once, and kept by `Slide`."""
WITH_OTHER_TAGS: Final = ("aperio", "philips", "ventana", "generic-tiff")
"""Vendors in whose TIFFs a resolution tag may stand beside the scale that OpenSlide tells; it makes that of Leica, Hamamatsu
and Trestle of the tag itself."""


class OpenSlideReader:
    """OpenSlide: the vendors' formats and tiled pyramidal TIFF."""

    name = "openslide"
    shared = False

    def __init__(self, path: Path) -> None:
        require_local(path)
        slide = openslide.OpenSlide(path)
        try:
            slide.set_cache(openslide.OpenSlideCache(CACHE))
            self._slide = slide
            self._properties: Mapping[str, str] = dict(slide.properties)
            self.sizes = tuple(Size(int(w), int(h)) for w, h in slide.level_dimensions)
            require_sizes(self.sizes)
            self.vendor = str(self._properties.get("openslide.vendor") or "unknown")
            said = self._statements(path)
            own = scale_of(self._properties.get("openslide.mpp-x"), self._properties.get("openslide.mpp-y"), "openslide.mpp-x")
            scales: list[StatedScale] = [] if own is None or self.vendor == "generic-tiff" else [own]
            scales += said.scales if said else ()
            self.stated_scale = scales[0] if scales else None
            power = number(self._properties.get("openslide.objective-power")) or (said.objective_power if said else None)
            images = tuple(sorted(str(name) for name in slide.associated_images))
            self.details = Details(power, self._profile(), images, tuple(scales[1:]))
            if self.vendor == "generic-tiff" and said and said.vendor:
                self.vendor = said.vendor
        except BaseException:
            slide.close()
            raise

    def _statements(self, path: Path) -> TiffStatements | None:
        if self.vendor not in WITH_OTHER_TAGS:
            return None
        with tifffile.TiffFile(path) as tiff:
            if self.vendor == "generic-tiff":
                require_rgb(tiff.pages.first)
            if self.vendor == "ventana":
                self._require_tiles(tiff)
            return read_statements(tiff)

    def _require_tiles(self, tiff: Any) -> None:
        """Raise ValueError where a Ventana level claims more tiles than its page has: OpenSlide reads beyond their table."""
        pages = sorted((page for page in tiff.pages if page.is_tiled), key=lambda page: -page.imagewidth)
        if len(pages) < len(self.sizes):
            raise ValueError(f"{len(self.sizes)} levels on {len(pages)} pages of tiles")
        for size, page in zip(self.sizes, pages, strict=False):
            room = (
                -(-page.imagewidth // page.tilewidth) * page.tilewidth,
                -(-page.imagelength // page.tilelength) * page.tilelength,
            )
            if size.width > room[0] or size.height > room[1]:
                raise ValueError(
                    f"a level of {size.width} x {size.height} px on a page of {page.imagewidth} x {page.imagelength} px"
                )

    def _profile(self) -> bytes | None:
        try:
            profile = self._slide.color_profile
        except (openslide.OpenSlideError, ImageCms.PyCMSError, OSError):
            return None  # damaged: as good as none
        return bytes(profile.tobytes()) if profile is not None else None

    def block(self, level: int) -> Size:
        sides = [number(self._properties.get(f"openslide.level[{level}].tile-{s}")) for s in ("width", "height")]
        return block_of(int(sides[0] or DEFAULT_BLOCK), int(sides[1] or DEFAULT_BLOCK), self.sizes[level])

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        downsample = self._slide.level_downsamples[level]
        corner = (round(box.x * downsample), round(box.y * downsample))
        return np.asarray(self._slide.read_region(corner, level, (box.width, box.height)))

    def close(self) -> None:
        self._slide.close()
