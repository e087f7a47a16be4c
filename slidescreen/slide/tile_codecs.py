"""Compressed tile -> pixels. Every decoder is told the size of its result, and refuses data that unfold to another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import cv2
import imagecodecs
import numpy as np
from numpy.typing import NDArray

JPEG: Final = 7
_JPEG_RGB: Final = 2
"""libjpeg's number for three components that are R, G, B."""
_ADOBE_RGB: Final = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
"""The APP14 marker that says so within a JPEG."""
_REDUCED: Final = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
REDUCTIONS: Final = tuple(_REDUCED)

_BYTES: Final[Mapping[int, Callable[..., bytes | bytearray]]] = {
    1: lambda data, out: data,
    5: imagecodecs.lzw_decode,
    8: imagecodecs.zlib_decode,
    32946: imagecodecs.zlib_decode,
    50000: imagecodecs.zstd_decode,
}
"""TIFF's Compression tag -> bytes in, at most `out` bytes out."""
_IMAGES: Final[Mapping[int, Callable[..., NDArray[Any]]]] = {
    33005: imagecodecs.jpeg2k_decode,
    34712: imagecodecs.jpeg2k_decode,
    34927: imagecodecs.webp_decode,
    50001: imagecodecs.webp_decode,
    50002: imagecodecs.jpegxl_decode,
    52546: imagecodecs.jpegxl_decode,
}
"""Likewise -> pixels, into the array `out`, whose shape must be the image's. 33005: Aperio's JPEG 2000 in RGB."""
IMAGES: Final = frozenset({JPEG, *_IMAGES})
COMPRESSIONS: Final = frozenset({*IMAGES, *_BYTES})


@dataclass(frozen=True, slots=True)
class TileCodec:
    """How the tiles of one level are packed. `shape`: (h, w, samples) of a whole tile. `separate`: each tile holds one sample.
    `tables`: JPEG tables that the tiles share. `rgb`: the tag says that the JPEG's components are RGB.
    `ends`: a JPEG without its end mark has been cut."""

    compression: int
    shape: tuple[int, int, int]
    separate: bool = False
    differences: bool = False
    tables: bytes = b""
    rgb: bool = False
    ends: bool = False

    @property
    def reductions(self) -> tuple[int, ...]:
        """Factors by which tiles can be decoded reduced: of JPEG, where they divide the tile."""
        if self.compression != JPEG or self.shape[2] != 3:
            return ()
        return tuple(f for f in REDUCTIONS if self.shape[0] % f == 0 and self.shape[1] % f == 0)

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """A whole tile: (h, w, samples), or (h, w, 1) of separate samples. Raises what the decoder raises, or ValueError where
        the data are too short or hold an image of another size."""
        shape = (*self.shape[:2], 1) if self.separate else self.shape
        if self.compression in _BYTES:
            return _unpacked(_BYTES[self.compression], data, shape, self.differences)
        out = _buffer(shape)
        if self.compression == JPEG:
            self._require_end(data)
            space = _JPEG_RGB if self.rgb and not _says_colours(data) else None
            imagecodecs.jpeg8_decode(data, tables=self.tables or None, colorspace=space, outcolorspace=_JPEG_RGB, out=out)
        elif self.compression in (34927, 50001):
            imagecodecs.webp_decode(data, hasalpha=shape[2] == 4, out=out)
        else:
            _IMAGES[self.compression](data, out=out)
        return out

    def decode_reduced(self, data: bytes, factor: int) -> NDArray[np.uint8]:
        """A whole JPEG tile at 1/`factor` of its size, (h / factor, w / factor, 3): libjpeg leaves out the high frequencies in
        place of decoding and averaging. Raises ValueError where it cannot be decoded."""
        self._require_end(data)
        if jpeg_size(data) != (self.shape[1], self.shape[0]):
            raise ValueError(f"a JPEG of {jpeg_size(data)} px in place of {self.shape[1], self.shape[0]}")
        colours = _ADOBE_RGB if self.rgb and not _says_colours(data) else b""
        stream = b"".join((data[:2], colours, self.tables[2:-2], data[2:]))
        flags = _REDUCED[factor] | cv2.IMREAD_IGNORE_ORIENTATION
        small = cv2.imdecode(np.frombuffer(stream, np.uint8), flags)
        if small is None:
            raise ValueError("not a JPEG that can be decoded")
        return np.asarray(cv2.cvtColor(small, cv2.COLOR_BGR2RGB), np.uint8)

    def _require_end(self, data: bytes) -> None:
        if self.ends and not has_end(data):
            raise ValueError("a JPEG without its end")


def _buffer(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Uninitialised (h, w, samples) that starts in the middle of 32 bytes: libjpeg-turbo writes past the cache where
    rows are aligned to 32, and then decodes a quarter slower, since the px are used next."""
    size = shape[0] * shape[1] * shape[2]
    raw = np.empty(size + 47, np.uint8)
    start = (16 - raw.ctypes.data) % 32
    return raw[start : start + size].reshape(shape)


def has_end(data: bytes) -> bool:
    """Whether a JPEG's end mark is there; what follows it is padding."""
    return data.rfind(b"\xff\xd9") >= 0


def jpeg_size(data: bytes) -> tuple[int, int]:
    """(width, height) in px as a JPEG's frame header states it. Raises ValueError where there is none."""
    at = 2
    while data[:2] == b"\xff\xd8" and at + 9 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        at += 2 + length
    raise ValueError("a JPEG without a frame header")


def _says_colours(data: bytes) -> bool:
    """Whether a JPEG has a JFIF or Adobe marker of its own, which then decides over the TIFF's tag."""
    return data[6:10] == b"JFIF" or b"Adobe" in data[:64]


def _unpacked(
    decode: Callable[..., bytes | bytearray], data: bytes, shape: tuple[int, int, int], differences: bool
) -> NDArray[np.uint8]:
    size = shape[0] * shape[1] * shape[2]
    raw = decode(data, out=size)
    if len(raw) < size:
        raise ValueError(f"{len(raw)} bytes in place of {size}")
    pixels = np.frombuffer(raw, np.uint8, size).reshape(shape)
    return np.asarray(imagecodecs.delta_decode(pixels, axis=1), np.uint8) if differences else pixels
