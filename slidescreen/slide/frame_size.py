"""The size that a compressed image claims in its header, looked at before a decoder allocates room for it."""

from __future__ import annotations

from slidescreen.slide.tile_codecs import jpeg_size

SOC_SIZ = b"\xff\x4f\xff\x51"
"""JPEG 2000 (also HTJ2K): start of codestream and the size segment that must follow it (ISO/IEC 15444-1, A.4.1 and A.5.1)."""
HEADER_BYTES = 1 << 16


def frame_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) in px that a JPEG or JPEG 2000 claims; None for other data.

    Raises ValueError for a JPEG without a frame.
    """
    if data[:2] == b"\xff\xd8":
        return jpeg_size(data)
    at = data.find(SOC_SIZ, 0, HEADER_BYTES)
    if at < 0:
        return None
    right, bottom, left, top = (int.from_bytes(data[at + 8 + 4 * i : at + 12 + 4 * i], "big") for i in range(4))
    return right - left, bottom - top


def require_frame(data: bytes, width: int, height: int) -> None:
    """Raise ValueError where an image claims to be larger than it may be."""
    size = frame_size(data)
    if size is not None and not (0 < size[0] <= width and 0 < size[1] <= height):
        raise ValueError(f"an image that claims {size[0]} x {size[1]} px in place of {width} x {height}")
