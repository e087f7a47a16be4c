"""`Slide`: one scan, its levels, and pixels that do not depend on how they were asked for."""

from __future__ import annotations

import enum
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from slidescreen.geometry import Box, Size
from slidescreen.records import RgbImage
from slidescreen.slide.fingerprint import fingerprint
from slidescreen.slide.reader import Reader, StatedScale

CACHE_BYTES: Final = 96 << 20
"""Room for the level-0 px under one tile of the finder (4096 x 4096 px)."""


class PixelState(enum.IntEnum):
    """What is known of a pixel; the larger value wins where pixels are averaged."""

    SCANNED = 0
    UNSCANNED = 1
    UNREADABLE = 2


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """`rgb` (h, w, 3) uint8, white where nothing was scanned or read; `state` (h, w) uint8 of `PixelState`."""

    rgb: RgbImage
    state: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Level:
    """Size in px of the level and level-0 px per px of the level."""

    size: Size
    downsample: float


class Slide:
    """One scan, opened read-only.

    Pixels are assembled from blocks on a fixed lattice, each decoded whole and kept in a bounded cache that threads share,
    so that a pixel never depends on the region it was asked with, and neighbouring reads decode a block once.
    Each thread has its own handle; after a fork the child opens new ones.
    """

    def __init__(
        self, path: Path, reader: Callable[[Path], Reader], first: Reader, *, why: str = "", notes: tuple[str, ...] = ()
    ) -> None:
        self.path = path
        self.why = why
        """Why this reader was chosen."""
        self.notes = notes
        """What the user should know of the file."""
        self.reader = first.name
        self.vendor = first.vendor
        self.stated_scale: StatedScale | None = first.stated_scale
        self.details = first.details
        self.icc: Literal["none", "ignored", "applied"] = "none"
        """Whether the file has a colour profile, and whether its colours are turned by it."""
        self.size = first.sizes[0]
        self.levels = tuple(Level(size, self._downsample(size)) for size in first.sizes)
        self._blocks = tuple(first.block(i) for i in range(len(first.sizes)))
        self._reader = reader
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._handles: OrderedDict[int, Reader] = OrderedDict([(threading.get_ident(), first)])
        self._inherited: OrderedDict[int, Reader] = OrderedDict()
        self._cache: OrderedDict[tuple[int, int, int], Pixels] = OrderedDict()
        self._cache_bytes = 0
        self.unreadable_blocks: set[tuple[int, int, int]] = set()
        """(level, column, row) of blocks that could not be decoded so far."""
        self.blocks_decoded = 0

    def _downsample(self, size: Size) -> float:
        return (self.size.width / size.width + self.size.height / size.height) / 2

    def fingerprint(self) -> str:
        """64 hex digits of the content; see `fingerprint`."""
        return fingerprint(self.path)

    def read_region(self, box: Box, level: int = 0) -> RgbImage:
        """(h, w, 3) uint8 RGB of `box`, in px of `level`. Transparent, unreadable and outside pixels are white."""
        return self.read_pixels(box, level).rgb

    def read_pixels(self, box: Box, level: int = 0) -> Pixels:
        """Pixels of `box`, in px of `level`, with the state of each. The box may lie partly or wholly outside the scan."""
        rgb = np.full((box.height, box.width, 3), 255, np.uint8)
        state = np.full((box.height, box.width), PixelState.UNSCANNED, np.uint8)
        for column, row, block in self._lattice(box, level):
            part = block.intersect(box)
            pixels = self._block_pixels(level, column, row, block)
            source = np.s_[part.y - block.y : part.bottom - block.y, part.x - block.x : part.right - block.x]
            target = np.s_[part.y - box.y : part.bottom - box.y, part.x - box.x : part.right - box.x]
            rgb[target] = pixels.rgb[source]
            state[target] = pixels.state[source]
        return Pixels(rgb, state)

    def _lattice(self, box: Box, level: int) -> Iterator[tuple[int, int, Box]]:
        """The blocks of `level` that `box` touches: column, row, and the block clipped to the level."""
        limit = Box(0, 0, self.levels[level].size.width, self.levels[level].size.height)
        inside, side = box.intersect(limit), self._blocks[level]
        if not inside.width or not inside.height:
            return
        for row in range(inside.y // side.height, (inside.bottom - 1) // side.height + 1):
            for column in range(inside.x // side.width, (inside.right - 1) // side.width + 1):
                whole = Box(column * side.width, row * side.height, side.width, side.height)
                yield column, row, whole.intersect(limit)

    def _block_pixels(self, level: int, column: int, row: int, block: Box) -> Pixels:
        key = (level, column, row)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        pixels = self._decode(level, block, key)
        with self._lock:
            self.blocks_decoded += 1
            if key not in self._cache:
                self._cache[key] = pixels
                self._cache_bytes += pixels.rgb.nbytes + pixels.state.nbytes
            while self._cache_bytes > CACHE_BYTES and len(self._cache) > 1:
                old = self._cache.popitem(last=False)[1]
                self._cache_bytes -= old.rgb.nbytes + old.state.nbytes
        return pixels

    def _decode(self, level: int, block: Box, key: tuple[int, int, int]) -> Pixels:
        try:
            raw = self._handle().read(level, block)
            if raw.shape[:2] != (block.height, block.width):
                raise OSError(f"decoded {raw.shape[1]} x {raw.shape[0]} px in place of {block.width} x {block.height}")
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception:  # each decoder has errors of its own; all mean that these pixels are lost
            self._drop_handle()
            with self._lock:
                self.unreadable_blocks.add(key)
            shape = (block.height, block.width)
            return Pixels(np.full((*shape, 3), 255, np.uint8), np.full(shape, PixelState.UNREADABLE, np.uint8))
        return _on_white(raw)

    def _handle(self) -> Reader:
        """This thread's handle, opened on first use."""
        thread = threading.get_ident()
        with self._lock:
            if os.getpid() != self._pid:
                self._pid = os.getpid()
                self._inherited = self._handles  # kept, not closed: they are the parent's
                self._handles = OrderedDict()
            if thread in self._handles:
                return self._handles[thread]
        handle = self._reader(self.path)
        with self._lock:
            self._handles[thread] = handle
        return handle

    def _drop_handle(self) -> None:
        """Forget this thread's handle: OpenSlide's stay in an error state after the first failed read."""
        with self._lock:
            handle = self._handles.pop(threading.get_ident(), None)
        if handle is not None:
            handle.close()

    def close(self) -> None:
        """Close every handle of this process and free the cache."""
        with self._lock:
            handles = list(self._handles.values()) if os.getpid() == self._pid else []
            self._handles = OrderedDict()
            self._cache.clear()
            self._cache_bytes = 0
        for handle in handles:
            handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _on_white(raw: NDArray[np.uint8]) -> Pixels:
    """RGB or RGBA -> RGB on white; fully transparent pixels are unscanned."""
    state = np.zeros(raw.shape[:2], np.uint8)
    if raw.shape[2] == 3:
        return Pixels(np.ascontiguousarray(raw), state)
    rgb, alpha = raw[..., :3], raw[..., 3:]
    if alpha.min() == 255:
        return Pixels(np.ascontiguousarray(rgb), state)
    state[alpha[..., 0] == 0] = PixelState.UNSCANNED
    weight = alpha.astype(np.uint16)
    mixed = (rgb.astype(np.uint16) * weight + 255 * (255 - weight) + 127) // 255
    return Pixels(mixed.astype(np.uint8), state)
