"""Whether a TIFF's chain of directories runs beyond the end of the file: the mark of a copy that broke off.

Readers take what they can reach for the whole and drop the levels that follow in silence.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

MAX_DIRECTORIES: Final = 10_000
FORMS: Final = {42: ("H", "I", 12), 43: ("Q", "Q", 20)}
"""TIFF and BigTIFF: number of entries, offset, bytes per entry (TIFF 6.0; BigTIFF design of Aware Systems)."""


def missing_from(path: Path) -> int | None:
    """The byte at which a directory should stand that lies beyond the end of the file; None for a whole chain, and for what is
    no TIFF."""
    length = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        if order is None or len(head) < 16:
            return None
        (version,) = struct.unpack(order + "H", head[2:4])
        if version not in FORMS:
            return None
        count, pointer, entry = FORMS[version]
        (offset,) = struct.unpack_from(order + pointer, head, 4 if version == 42 else 8)
        for _ in range(MAX_DIRECTORIES):
            if not offset:
                return None
            file.seek(offset)
            entries = file.read(struct.calcsize("=" + count))
            if len(entries) < struct.calcsize("=" + count):
                return int(offset)
            file.seek(struct.unpack(order + count, entries)[0] * entry, 1)
            following = file.read(struct.calcsize("=" + pointer))
            if len(following) < struct.calcsize("=" + pointer) or file.tell() > length:
                return int(offset)
            (offset,) = struct.unpack(order + pointer, following)
    return None
