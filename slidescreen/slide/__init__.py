"""Scans: open, metadata, pixels. The only package that knows readers of foreign formats."""

from slidescreen.slide.fingerprint import fingerprint
from slidescreen.slide.grid import Grid, choose_grid, read_grid
from slidescreen.slide.listing import SCAN_SUFFIXES, scans_under
from slidescreen.slide.location import is_remote, location
from slidescreen.slide.opening import ReadSettings, open_slide, reader_names
from slidescreen.slide.reader import Details, StatedScale
from slidescreen.slide.readers import READERS, TIFF_READERS, read_image, why_unreadable
from slidescreen.slide.slide import Pixels, PixelState, Slide

__all__ = [
    "READERS",
    "SCAN_SUFFIXES",
    "TIFF_READERS",
    "Details",
    "Grid",
    "PixelState",
    "Pixels",
    "ReadSettings",
    "Slide",
    "StatedScale",
    "choose_grid",
    "fingerprint",
    "is_remote",
    "location",
    "open_slide",
    "read_grid",
    "read_image",
    "reader_names",
    "scans_under",
    "why_unreadable",
]
