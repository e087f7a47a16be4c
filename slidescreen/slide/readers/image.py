"""Plain images, by Pillow."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slidescreen.geometry import Box, Size
from slidescreen.slide.reader import DEFAULT_BLOCK, MAX_IMAGE_PX, Details, StatedScale, block_of


class ImageReader:
    """A plain PNG, JPEG, WebP or BMP image, read whole. For single fields, up to 200 megapixels."""

    name = "pillow"
    shared = True
    vendor = "image"
    stated_scale: StatedScale | None = None

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file, open_image(file, ("PNG", "JPEG", "WEBP", "BMP")) as image:
            self._pixels = np.asarray(image.convert("RGBA" if image.mode in ("RGBA", "LA", "P") else "RGB"))
            profile = image.info.get("icc_profile")
        self.sizes: tuple[Size, ...] = (Size(self._pixels.shape[1], self._pixels.shape[0]),)
        self.details = Details(icc_profile=profile if isinstance(profile, bytes) else None)

    def block(self, level: int) -> Size:
        return block_of(DEFAULT_BLOCK, DEFAULT_BLOCK, self.sizes[level])

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        return self._pixels[box.y : box.bottom, box.x : box.right]

    def close(self) -> None:
        pass


def open_image(file: object, formats: tuple[str, ...] | None) -> Image.Image:
    """An image of a file object or path, not yet decoded. Raises ValueError for more than 200 megapixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow about odd but readable content; what cannot be read raises
        try:
            image = Image.open(file, formats=formats)  # type: ignore[arg-type]
        except Image.DecompressionBombError as error:
            raise ValueError(f"too large for a plain image; use a tiled TIFF ({error})") from error
    if image.width * image.height > MAX_IMAGE_PX:
        image.close()
        raise ValueError(f"{image.width} x {image.height} px is too large for a plain image; use a tiled TIFF")
    return image


def why_unreadable(error: Exception, path: Path) -> str:
    """Why `read_image` could not read `path`, in a few words, without the path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).replace(repr(str(path)), "it").replace(str(path), "it").split())


def read_image(path: Path) -> NDArray[np.uint8]:
    """A single image of any format Pillow knows -> (h, w, 3) uint8 RGB, alpha dropped as Matek et al. 2019 do.

    Raises OSError or ValueError when it cannot be decoded or is too large.
    """
    with open_image(path, None) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"not an 8-bit RGB image (mode {image.mode})")
        return np.asarray(image.convert("RGB"))
