"""TIFFs by tiffslide, to be asked for by name: a second opinion on what the others read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slidescreen.geometry import Box, Size
from slidescreen.slide.readers.tiff import TifffileReader


class TiffSlideReader:
    """tiffslide's pixels, with the guards and the metadata of `TifffileReader`, which it must agree with.

    It comes after that one and sees no more, so that it is in use only where it is asked for. Refuses sparse files: tiffslide
    shows tiles that were never written as black.
    """

    name = "tiffslide"
    shared = False

    def __init__(self, path: Path) -> None:
        self._plain = TifffileReader(path)
        try:
            if self._plain.sparse:
                raise ValueError("tiles that were never written come out black; use another reader")
            import tiffslide  # slow to load: only where it is asked for

            self._slide = tiffslide.TiffSlide(path)
            found = tuple(Size(int(w), int(h)) for w, h in self._slide.level_dimensions)
            if found != self._plain.sizes:
                raise ValueError(f"{len(found)} levels in place of {len(self._plain.sizes)}, or of other sizes")
        except BaseException:
            self._plain.close()
            raise
        self.sizes, self.vendor = self._plain.sizes, self._plain.vendor
        self.stated_scale, self.details = self._plain.stated_scale, self._plain.details

    def block(self, level: int) -> Size:
        return self._plain.block(level)

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        self._plain.require_pieces(level, box)
        downsample = self._slide.level_downsamples[level]
        corner = (round(box.x * downsample), round(box.y * downsample))
        return np.asarray(self._slide.read_region(corner, level, (box.width, box.height), as_array=True))

    def close(self) -> None:
        self._slide.close()
        self._plain.close()
