"""Scans: open, metadata, pixels. The only package that knows readers of foreign formats."""

from slidescreen.slide.fingerprint import fingerprint
from slidescreen.slide.grid import Grid, choose_grid, read_grid
from slidescreen.slide.readers import READERS, StatedScale, read_image
from slidescreen.slide.slide import Pixels, PixelState, Slide, open_slide

__all__ = [
    "READERS",
    "Grid",
    "PixelState",
    "Pixels",
    "Slide",
    "StatedScale",
    "choose_grid",
    "fingerprint",
    "open_slide",
    "read_grid",
    "read_image",
]
