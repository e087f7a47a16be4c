"""What a TIFF claims, checked in Python before a native library acts on it: chains, sizes, tables, entities in its XML.

The C libraries trust such numbers to various degrees: a loop of directories may hang them, a side of 2^31 px or a grid of 10^9
tiles may exhaust memory or end the process.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import numpy as np

from slidescreen.slide.markup import MAX_TEXT, defines_entities
from slidescreen.slide.reader import MAX_SIDE, MAX_TILE_PX

MAX_DIRECTORIES: Final = 10_000
MAX_ENTRIES: Final = 4096
"""Tags of one directory; scanners write some dozens."""
MAX_SAMPLES: Final = 16
MAX_PX: Final = 1 << 38
FORMS: Final = {42: ("H", "I", 12), 43: ("Q", "Q", 20)}
"""TIFF and BigTIFF: number of entries, offset, bytes per entry (TIFF 6.0; BigTIFF design of Aware Systems)."""
TYPE_BYTES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
WHOLE: Final = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
WIDTH, LENGTH, SAMPLES, TILE_WIDTH, TILE_LENGTH, SUBIFDS = 256, 257, 277, 322, 323, 330
TABLES: Final = {270, 273, 279, 324, 325, 330, 347, 700}
"""Tags whose values must lie inside the file: descriptions, tables of strips and tiles, JPEG tables."""
PLANAR, SEPARATE, TILE_OFFSETS, TILE_BYTES = 284, 2, 324, 325
MAX_TILE_BYTES: Final = 1 << 27
"""OpenSlide makes room for a tile's bytes before it looks whether the file has them."""
TEXTS: Final = (270, 700)
NDPI_MARK: Final = 65420
"""Hamamatsu's NDPI stretches classic TIFF beyond 4 GiB: offsets of directories have 64 bits."""
GRID: Final = re.compile(rb'\bNum(?:Rows|Cols)\s*=\s*["\'](\d+)')
MAX_GRID: Final = 5000
"""Rows or columns of camera images of a Ventana scan; OpenSlide allocates rows x columns of them before it looks further."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a TIFF is not handed to any reader. `truncated`: the copy broke off."""

    reason: str
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class _Entry:
    tag: int
    kind: int
    count: int
    at: int
    """Position of the value's first byte."""

    @property
    def bytes(self) -> int:
        return TYPE_BYTES.get(self.kind, 1) * self.count


class _Form:
    """Byte order and widths of an open TIFF or BigTIFF."""

    def __init__(self, file: IO[bytes], length: int, order: str, version: int) -> None:
        self.file, self.length, self.order = file, length, order
        self.count, self.pointer, self.entry = FORMS[version]
        self.link = self.pointer
        """Of the offset of the next directory."""

    def whole(self, at: int, code: str) -> int | None:
        """An unsigned number, or None beyond the end of the file."""
        size = struct.calcsize("=" + code)
        if at + size > self.length:
            return None
        self.file.seek(at)
        data = self.file.read(size)
        return int(struct.unpack(self.order + code, data)[0]) if len(data) == size else None

    def entries(self, offset: int, count: int) -> list[_Entry]:
        first = offset + struct.calcsize("=" + self.count)
        self.file.seek(first)
        block = self.file.read(count * self.entry)
        count = len(block) // self.entry
        found = []
        inline = struct.calcsize("=" + self.pointer)
        for i in range(count):
            tag, kind, number = struct.unpack_from(self.order + "HH" + self.pointer, block, i * self.entry)
            at = first + (i + 1) * self.entry - inline
            if TYPE_BYTES.get(kind, 1) * number > inline:
                at = struct.unpack_from(self.order + self.pointer, block, (i + 1) * self.entry - inline)[0]
            found.append(_Entry(tag, kind, number, at))
        return found

    def has(self, offset: int, tag: int) -> bool:
        """Whether there is a directory at `offset`, and with that tag."""
        count = self.whole(offset, self.count)
        whole = count is not None and count <= MAX_ENTRIES and offset + count * self.entry < self.length
        return whole and any(entry.tag == tag for entry in self.entries(offset, count or 0))

    def largest(self, entry: _Entry) -> int:
        """The largest of an entry's whole numbers; 0 where they are of another kind."""
        code = WHOLE.get(entry.kind)
        self.file.seek(entry.at)
        data = self.file.read(entry.bytes if code else 0)
        return int(np.frombuffer(data, self.order + "u" + str(TYPE_BYTES[entry.kind])).max()) if data else 0

    def value(self, entry: _Entry) -> int | None:
        return self.whole(entry.at, WHOLE[entry.kind]) if entry.kind in WHOLE and entry.count else None


def tiff_fault(path: Path) -> Fault | None:
    """What is wrong with a TIFF's directories; None for sound ones and for what is no TIFF."""
    length = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        if order is None or len(head) < 16:
            return None
        (version,) = struct.unpack(order + "H", head[2:4])
        if version not in FORMS:
            return None
        form = _Form(file, length, order, version)
        (first,) = struct.unpack_from(order + form.pointer, head, 4 if version == 42 else 8)
        (wide,) = struct.unpack_from(order + "Q", head, 4)
        if version == 42 and form.has(wide, NDPI_MARK):
            first, form.link = wide, "Q"
        return _chain_fault(form, first)


def _chain_fault(form: _Form, first: int) -> Fault | None:
    """Walk the main chain and the SubIFDs hanging from it."""
    waiting, seen = [first], set[int]()
    while waiting:
        offset = waiting.pop(0)
        if offset in seen:
            return Fault("its directories run in a circle")
        if len(seen) >= MAX_DIRECTORIES:
            return Fault(f"more than {MAX_DIRECTORIES} directories")
        seen.add(offset)
        count = form.whole(offset, form.count)
        if count is None:
            return _beyond(form, offset)
        if count > MAX_ENTRIES:
            return Fault(f"a directory with {count} tags")
        after = offset + struct.calcsize("=" + form.count) + count * form.entry
        following = form.whole(after, form.link)
        if following is None:
            return _beyond(form, offset)
        entries = form.entries(offset, count)
        fault = next(_faults(form, entries), None)
        if fault is not None:
            return fault
        children = [list(_whole_values(form, entry)) for entry in entries if entry.tag == SUBIFDS]
        waiting += [child for values in children for child in values if child]
        waiting += [following] if following else []
    return None


def _beyond(form: _Form, offset: int) -> Fault:
    return Fault(f"it goes on at byte {offset}, but ends at byte {form.length}", truncated=True)


def _whole_values(form: _Form, entry: _Entry) -> Iterator[int]:
    code = WHOLE.get(entry.kind)
    for i in range(min(entry.count, MAX_DIRECTORIES) if code else 0):
        found = form.whole(entry.at + i * struct.calcsize("=" + str(code)), str(code))
        if found is not None:
            yield found


def _faults(form: _Form, entries: list[_Entry]) -> Iterator[Fault]:
    values = {entry.tag: form.value(entry) or 0 for entry in entries if entry.kind in WHOLE}
    width, height = values.get(WIDTH, 0), values.get(LENGTH, 0)
    if max(width, height) > MAX_SIDE or width * height > MAX_PX:
        yield Fault(f"claims {width} x {height} px; no slide is that large")
    if (WIDTH in values and not width) or (LENGTH in values and not height):
        yield Fault(f"claims {width} x {height} px")
    tile = (values.get(TILE_WIDTH, 1), values.get(TILE_LENGTH, 1))
    if tile[0] * tile[1] > MAX_TILE_PX or not all(tile):
        yield Fault(f"claims tiles of {tile[0]} x {tile[1]} px")
    elif TILE_WIDTH in values and TILE_LENGTH in values:
        planes = values.get(SAMPLES, 1) if values.get(PLANAR) == SEPARATE else 1
        tiles = -(-width // tile[0]) * -(-height // tile[1]) * planes
        short = [entry for entry in entries if entry.tag in (TILE_OFFSETS, TILE_BYTES) and entry.count < tiles]
        if short:
            yield Fault(f"a table of {short[0].count} tiles in place of {tiles}")
    if values.get(SAMPLES, 1) > MAX_SAMPLES:
        yield Fault(f"claims {values[SAMPLES]} samples a px")
    for entry in entries:
        if entry.tag in TABLES and entry.at + entry.bytes > form.length:
            yield Fault(f"the values of tag {entry.tag} lie beyond the end of the file; copy it again from the scanner")
        elif entry.tag == TILE_BYTES and form.largest(entry) > MAX_TILE_BYTES:
            yield Fault(f"claims a tile of {form.largest(entry)} bytes")
        if entry.tag in TEXTS:
            yield from _text_faults(form, entry)


def _text_faults(form: _Form, entry: _Entry) -> Iterator[Fault]:
    if entry.bytes > MAX_TEXT:
        yield Fault(f"a description of {entry.bytes} bytes")
        return
    form.file.seek(entry.at)
    text = form.file.read(entry.bytes)
    if defines_entities(text):
        yield Fault("its XML defines entities or a document type, which no scanner does")
    if any(len(digits) > 9 or int(digits) > MAX_GRID for digits in GRID.findall(text)):
        yield Fault(f"its XML claims more than {MAX_GRID} rows or columns of camera images")
