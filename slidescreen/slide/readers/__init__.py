"""One small class per foreign reader, all of one shape: `Reader`."""

from __future__ import annotations

from typing import Final

from slidescreen.slide.reader import Reader
from slidescreen.slide.readers.dicom import DicomReader
from slidescreen.slide.readers.image import ImageReader, read_image, why_unreadable
from slidescreen.slide.readers.omezarr import OmeZarrReader
from slidescreen.slide.readers.openslide import OpenSlideReader
from slidescreen.slide.readers.tiff import TifffileReader
from slidescreen.slide.readers.tiffslide import TiffSlideReader
from slidescreen.slide.readers.tiled import TiledTiffReader
from slidescreen.slide.readers.vmic import VmicReader

TIFF_READERS: Final[tuple[type[Reader], ...]] = (TiledTiffReader, OpenSlideReader, TifffileReader, TiffSlideReader)
READERS: Final[tuple[type[Reader], ...]] = (
    *TIFF_READERS,
    OmeZarrReader,
    DicomReader,
    VmicReader,
    ImageReader,
)
"""In the order in which they are tried."""

__all__ = [
    "READERS",
    "TIFF_READERS",
    "DicomReader",
    "ImageReader",
    "OmeZarrReader",
    "OpenSlideReader",
    "TiffSlideReader",
    "TifffileReader",
    "TiledTiffReader",
    "VmicReader",
    "read_image",
    "why_unreadable",
]
