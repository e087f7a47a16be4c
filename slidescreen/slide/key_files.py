"""The key files of MIRAX and VMS, checked before OpenSlide acts on them: it loops over, and makes room for, what they claim."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

MAX_BYTES: Final = 16 << 20
NUMBER: Final = re.compile(r"^\s*(\w+)\s*=\s*([+-]?\d+)\s*$", re.MULTILINE)
LIMITS: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), limit)
    for pattern, limit in (
        (r"IMAGENUMBER_[XY]", 20_000),
        (r"CameraImageDivisionsPerSide", 64),
        (r"IMAGE_CONCAT_FACTOR", 16),
        (r"DIGITIZER_(WIDTH|HEIGHT)", 1 << 14),
        (r"\w*_COUNT", 10_000),
        (r"NoJpeg(Columns|Rows)|NoLayers|NoFocusPoints\w*|BitsPerPixel", 1000),
    )
)
"""Keys and the largest number that a scanner could mean by them; none is negative."""
MAX_IMAGES: Final = 20_000_000


def key_file_fault(path: Path) -> str | None:
    """What is absurd in the key file of a scan; None where nothing is, and for other formats."""
    suffix = path.suffix.lower()
    file = {".mrxs": path.with_suffix("") / "Slidedat.ini", ".vms": path, ".vmu": path}.get(suffix)
    if file is None or not file.is_file():
        return None
    if file.stat().st_size > MAX_BYTES:
        return f"{file.name} of {file.stat().st_size} bytes"
    images = 1
    for key, digits in NUMBER.findall(file.read_text(encoding="utf-8", errors="replace")):
        for pattern, limit in LIMITS:
            if pattern.fullmatch(key) and (len(digits) > 9 or not 0 <= int(digits) <= limit):
                return f"{file.name} claims {key} = {digits[:20]}"
        images *= int(digits) if key.upper().startswith("IMAGENUMBER_") else 1
    return f"{file.name} claims {images} camera images" if images > MAX_IMAGES else None
