"""Scans: open, metadata, pixels. The only package that knows readers of foreign formats."""

from slidescreen.slide.fingerprint import fingerprint
from slidescreen.slide.grid import Grid, choose_grid, read_grid
from slidescreen.slide.location import location
from slidescreen.slide.opening import ReadSettings, open_slide, reader_names
from slidescreen.slide.reader import Details, StatedScale
from slidescreen.slide.readers import READERS, read_image
from slidescreen.slide.slide import Pixels, PixelState, Slide

__all__ = [
    "READERS",
    "Details",
    "Grid",
    "PixelState",
    "Pixels",
    "ReadSettings",
    "Slide",
    "StatedScale",
    "choose_grid",
    "fingerprint",
    "location",
    "open_slide",
    "read_grid",
    "read_image",
    "reader_names",
]
