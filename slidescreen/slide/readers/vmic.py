"""PreciPoint's VMIC: a ZIP that holds a ZIP that holds a Deep Zoom pyramid. No library reads it.

Nothing is ever unpacked to disk, so that names inside the archives cannot point anywhere.
"""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import IO, Final

import numpy as np
from numpy.typing import NDArray

from slidescreen.geometry import Box, Size
from slidescreen.slide.markup import local_name, parse_xml
from slidescreen.slide.reader import MAX_SIDE, MAX_TILE_PX, Details, StatedScale, block_of, number, require_sizes, scale_of
from slidescreen.slide.readers.image import open_image

INNER: Final = ("Image.vmici", "Image")
PYRAMID: Final = "dzc_output.xml"
CONFIG: Final = "VMCF/config.osc"
OVERVIEW: Final = "VMCF/overview.jpg"
FORMATS: Final = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG"}
MAX_TEXT: Final = 16 << 20
MAX_PACKED: Final = 1 << 28
"""Bytes of an inner archive that is compressed once more, and so must be held in memory."""
MAX_TILE_BYTES: Final = 64 << 20
LOCAL_HEADER: Final = struct.Struct("<4s22xHH")
"""Of ZIP's local file header: signature, then at byte 26 the lengths of name and extra field (APPNOTE 4.3.7)."""


class _Window(io.RawIOBase):
    """Bytes `start` to `start + length` of an open file, as a file of its own."""

    def __init__(self, file: IO[bytes], start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        self._file.seek(self._start + self._at)
        got = self._file.read(max(0, min(len(view), self._length - self._at)))
        view[: len(got)] = got
        self._at += len(got)
        return len(got)


class VmicReader:
    """PreciPoint VMIC."""

    name = "vmic"
    shared = False
    vendor = "precipoint"

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        try:
            if not zipfile.is_zipfile(self._file):
                raise ValueError("is no ZIP archive")
            self._outer = zipfile.ZipFile(self._file)
            self._inner = zipfile.ZipFile(_inner_file(self._file, self._outer))
            self._read_pyramid(_member(self._inner, PYRAMID, MAX_TEXT))
            self._read_config()
        except BaseException:
            self._file.close()
            raise

    def _read_pyramid(self, text: bytes) -> None:
        image = parse_xml(text)
        sides = [e for e in image if local_name(e) == "Size"]
        if local_name(image) != "Image" or not sides:
            raise ValueError(f"{PYRAMID} describes no Deep Zoom image")
        width, height = (int(sides[0].get(name, "0")) for name in ("Width", "Height"))
        self._tile, overlap = int(image.get("TileSize", "0")), int(image.get("Overlap", "0"))
        self._suffix = image.get("Format", "jpg").lower()
        if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and 0 < self._tile**2 <= MAX_TILE_PX):
            raise ValueError(f"{PYRAMID} claims {width} x {height} px in tiles of {self._tile} px")
        if overlap or self._suffix not in FORMATS:
            raise ValueError(f"Deep Zoom with overlap {overlap} and tiles of {self._suffix} is not known of this scanner")
        self._stated = scale_of_density(image.get("PixelPerMicron"), "VMIC dzc_output.xml PixelPerMicron")
        top = (max(width, height) - 1).bit_length()
        names = set(self._inner.namelist())
        levels = [
            (number, Size(-(-width // 2**down), -(-height // 2**down)))
            for down, number in enumerate(range(top, -1, -1))
            if down == 0 or max(width, height) / 2**down >= self._tile / 2
        ]
        present = [(n, size) for n, size in levels if any(name in names for name in self._names(n, size))]
        if not present or present[0][0] != top:
            raise ValueError("it holds no tile of the finest level")
        self._numbers = [n for n, _ in present]
        self.sizes = tuple(size for _, size in present)
        require_sizes(self.sizes)

    def _names(self, level: int, size: Size) -> list[str]:
        """Names of the first tile, the middle one and the last of a level."""
        columns, rows = -(-size.width // self._tile), -(-size.height // self._tile)
        places = {(0, 0), (columns // 2, rows // 2), (columns - 1, rows - 1)}
        return [self._name(level, column, row) for column, row in sorted(places)]

    def _name(self, level: int, column: int, row: int) -> str:
        return f"dzc_output_files/{level}/{column}_{row}.{self._suffix}"

    def _read_config(self) -> None:
        scales: list[StatedScale] = [self._stated] if self._stated else []
        power = None
        images: tuple[str, ...] = ()
        for archive in (self._outer, self._inner):
            names = archive.namelist()
            images = ("macro",) if OVERVIEW in names else images
            if CONFIG in names:
                elements = list(parse_xml(_member(archive, CONFIG, MAX_TEXT)).iter())
                said = {local_name(e): e.text or "" for e in elements} | {k: v for e in elements for k, v in e.attrib.items()}
                power = number(said.get("Magnification"))
                found = scale_of_density(said.get("PixelPerMicron"), "VMIC config.osc PixelPerMicron")
                scales = [found, *scales] if found else scales
        self.stated_scale: StatedScale | None = scales[0] if scales else None
        self.details = Details(power, None, images, tuple(scales[1:]))

    def block(self, level: int) -> Size:
        return block_of(self._tile, self._tile, self.sizes[level])

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        side, out = self._tile, np.empty((box.height, box.width, 3), np.uint8)
        for row in range(box.y // side, (box.bottom - 1) // side + 1):
            for column in range(box.x // side, (box.right - 1) // side + 1):
                pixels = self._tile_pixels(level, column, row)
                tile = Box(column * side, row * side, pixels.shape[1], pixels.shape[0])
                part = tile.intersect(box)
                out[part.y - box.y : part.bottom - box.y, part.x - box.x : part.right - box.x] = pixels[
                    part.y - tile.y : part.bottom - tile.y, part.x - tile.x : part.right - tile.x
                ]
        return out

    def _tile_pixels(self, level: int, column: int, row: int) -> NDArray[np.uint8]:
        """A tile of a level. Raises KeyError where it is missing and ValueError where it has not the size it must have."""
        size, side = self.sizes[level], self._tile
        expected = (min(side, size.width - column * side), min(side, size.height - row * side))
        data = _member(self._inner, self._name(self._numbers[level], column, row), MAX_TILE_BYTES)
        with open_image(io.BytesIO(data), (FORMATS[self._suffix],)) as image:
            if image.size != expected:
                raise ValueError(f"a tile of {image.width} x {image.height} px in place of {expected[0]} x {expected[1]}")
            return np.asarray(image.convert("RGB"))

    def close(self) -> None:
        self._file.close()


def scale_of_density(px_per_um: str | None, source: str) -> StatedScale | None:
    """The scale out of a density in px per um."""
    density = number(px_per_um)
    return scale_of(1 / density, 1 / density, source) if density else None


def _inner_file(file: IO[bytes], outer: zipfile.ZipFile) -> IO[bytes]:
    entries = {entry.filename: entry for entry in outer.infolist()}
    named = [n for n in INNER if n in entries] + [n for n in entries if n.endswith(".vmici")]
    name = named[0] if named else None
    if name is None:
        raise ValueError(f"is a ZIP archive without {' or '.join(INNER)}")
    entry = entries[name]
    if entry.compress_type != zipfile.ZIP_STORED:
        return io.BytesIO(_member(outer, name, MAX_PACKED))
    file.seek(entry.header_offset)
    signature, name_length, extra_length = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    if signature != b"PK\x03\x04":
        raise ValueError("its table of contents points to no archive")
    start = entry.header_offset + LOCAL_HEADER.size + name_length + extra_length
    return io.BufferedReader(_Window(file, start, entry.file_size), 1 << 16)


def _member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """A member's bytes; ValueError where it unpacks to more than `limit`, whatever its header claims."""
    with archive.open(name) as member:
        data = member.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{name} unpacks to more than {limit >> 20} MiB")
    return data
