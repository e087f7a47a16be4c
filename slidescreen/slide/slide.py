"""`Slide`: one scan, its levels, and pixels that do not depend on how they were asked for."""

from __future__ import annotations

import enum
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from slidescreen.geometry import Box, Size
from slidescreen.overlap import usable_cores
from slidescreen.records import RgbImage
from slidescreen.slide.fingerprint import fingerprint
from slidescreen.slide.reader import Reader, ReducingReader, StatedScale

CACHE_BYTES: Final = 96 << 20
"""Room for the level-0 px under one tile of the finder (4096 x 4096 px), and half as many around them."""
T = TypeVar("T")
MAX_THREADS: Final = 8
RUN: Final = 4
"""Blocks per task: a task costs as much as a tenth of a block."""


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


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """A decoded block. `state`: one for all px, or of each."""

    rgb: RgbImage
    state: int | NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        return self.rgb.nbytes + (self.state.nbytes if isinstance(self.state, np.ndarray) else 0)


_Key = tuple[int, int, int, int]
"""Level, reduction, column, row."""


class _Each(Protocol):
    """Does work on every item."""

    def __call__(self, work: Callable[[T], None], items: Sequence[T]) -> None: ...


class Slide:
    """One scan, opened read-only.

    Pixels are assembled from blocks on a fixed lattice, each decoded whole and kept in a bounded cache that threads share,
    so that a pixel never depends on the region it was asked with, and neighbouring reads decode a block once.
    Blocks of one read are decoded side by side where the reader lets threads share it; else each thread has its own handle.
    After a fork the child opens new ones.
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
        reducing = first if isinstance(first, ReducingReader) else None
        self._reductions = tuple(reducing.reductions(i) if reducing else () for i in range(len(first.sizes)))
        self._reader = reader
        self._shared = first.shared
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._handles: OrderedDict[int, Reader] = OrderedDict([(self._owner(), first)])
        self._inherited: OrderedDict[int, Reader] = OrderedDict()
        self._threads: ThreadPoolExecutor | None = None
        self._cache: OrderedDict[_Key, _Block] = OrderedDict()
        self._cache_bytes = 0
        self._decoding: dict[_Key, threading.Lock] = {}
        self.unreadable_blocks: set[tuple[int, int, int]] = set()
        """(level, column, row) of blocks that could not be decoded so far."""
        self.blocks_decoded = 0

    def _downsample(self, size: Size) -> float:
        return (self.size.width / size.width + self.size.height / size.height) / 2

    def fingerprint(self) -> str:
        """64 hex digits of the content; see `fingerprint`."""
        return fingerprint(self.path)

    def reductions(self, level: int) -> tuple[int, ...]:
        """The factors by which `level` can be read reduced in less time than whole."""
        return self._reductions[level]

    def read_region(self, box: Box, level: int = 0) -> RgbImage:
        """(h, w, 3) uint8 RGB of `box`, in px of `level`. Transparent, unreadable and outside pixels are white."""
        return self.read_pixels(box, level).rgb

    def read_pixels(self, box: Box, level: int = 0, reduction: int = 1) -> Pixels:
        """Pixels of `box`, with the state of each. In px of `level`, or of `level` divided by one of its `reductions`.
        The box may lie partly or wholly outside the scan."""
        return self._assemble(box, level, reduction, self._side_by_side)

    def read_many(self, boxes: Sequence[Box], level: int = 0) -> list[Pixels]:
        """`read_pixels` of each box, in their order; read in the order of the file, and side by side."""
        side = self._blocks[level]
        order = sorted(range(len(boxes)), key=lambda i: (boxes[i].y // side.height, boxes[i].x // side.width))
        found: list[Pixels | None] = [None] * len(boxes)

        def read(index: int) -> None:
            found[index] = self._assemble(boxes[index], level, 1, _in_turn)

        self._side_by_side(read, order)
        return [pixels for pixels in found if pixels is not None]

    def _assemble(self, box: Box, level: int, reduction: int, each: _Each) -> Pixels:
        size, side = self.levels[level].size, self._blocks[level]
        width, height = -(-side.width // reduction), -(-side.height // reduction)
        inside = box.intersect(Box(0, 0, -(-size.width // reduction), -(-size.height // reduction)))
        rgb, state = _canvas(box, inside)

        def place(at: tuple[int, int]) -> None:
            block = self._block((level, reduction, *at))
            x, y = at[0] * width, at[1] * height
            left, right = max(x, box.x), min(x + block.rgb.shape[1], box.right)
            top, bottom = max(y, box.y), min(y + block.rgb.shape[0], box.bottom)
            source, target = (
                np.s_[top - y : bottom - y, left - x : right - x],
                np.s_[top - box.y : bottom - box.y, left - box.x : right - box.x],
            )
            rgb[target] = block.rgb[source]
            if isinstance(block.state, np.ndarray):
                state[target] = block.state[source]
            elif block.state != PixelState.SCANNED:
                state[target] = block.state

        if inside.width and inside.height:
            rows = range(inside.y // height, (inside.bottom - 1) // height + 1)
            columns = range(inside.x // width, (inside.right - 1) // width + 1)
            each(place, [(column, row) for row in rows for column in columns])
        return Pixels(rgb, state)

    def _block(self, key: _Key) -> _Block:
        """From the cache, or decoded; where another thread is at it, once that is done."""
        while True:
            with self._lock:
                self._follow_fork()
                block = self._cache.get(key)
                if block is not None:
                    self._cache.move_to_end(key)
                    return block
                others = self._decoding.get(key)
                if others is None:
                    mine = self._decoding[key] = threading.Lock()
                    mine.acquire()
                    break
            with others:
                pass
        try:
            block = self._decode(key)
            with self._lock:
                self.blocks_decoded += 1
                self._cache[key] = block
                self._cache_bytes += block.nbytes
                while self._cache_bytes > CACHE_BYTES and len(self._cache) > 1:
                    self._cache_bytes -= self._cache.popitem(last=False)[1].nbytes
            return block
        finally:
            with self._lock:
                self._decoding.pop(key, None)
            mine.release()

    def _box(self, key: _Key) -> Box:
        """Where a block lies, clipped to its level, in px of the level divided by the reduction."""
        level, reduction, column, row = key
        size, side = self.levels[level].size, self._blocks[level]
        width, height = -(-side.width // reduction), -(-side.height // reduction)
        limit = Box(0, 0, -(-size.width // reduction), -(-size.height // reduction))
        return Box(column * width, row * height, width, height).intersect(limit)

    def _decode(self, key: _Key) -> _Block:
        level, reduction, column, row = key
        box = self._box(key)
        try:
            raw = self._raw(self._handle(), level, reduction, box)
            if raw.shape[:2] != (box.height, box.width):
                raise OSError(f"decoded {raw.shape[1]} x {raw.shape[0]} px in place of {box.width} x {box.height}")
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception:  # each decoder has errors of its own; all mean that these pixels are lost
            self._drop_handle()
            with self._lock:
                self.unreadable_blocks.add((level, column, row))
            return _Block(_white(box.height, box.width), PixelState.UNREADABLE)
        return _on_white(raw)

    @staticmethod
    def _raw(handle: Reader, level: int, reduction: int, box: Box) -> NDArray[np.uint8]:
        if reduction == 1:
            return handle.read(level, box)
        assert isinstance(handle, ReducingReader)
        return handle.read_reduced(level, box, reduction)

    def _side_by_side(self, work: Callable[[T], None], items: Sequence[T]) -> None:
        """Do all items, in runs of a few, on the threads that this machine has cores for."""
        workers = min(MAX_THREADS, usable_cores())
        if not self._shared or workers == 1 or len(items) <= RUN:
            return _in_turn(work, items)
        with self._lock:
            self._follow_fork()
            if self._threads is None:
                self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")
            threads = self._threads
        runs = [items[i : i + RUN] for i in range(0, len(items), RUN)]
        for _ in threads.map(lambda run: _in_turn(work, run), runs):
            pass

    def _owner(self) -> int:
        """Whose handle this thread uses: its own, or everybody's (0)."""
        return 0 if self._shared else threading.get_ident()

    def _follow_fork(self) -> None:
        """In a forked child, forget what is the parent's: handles, threads, blocks that its threads are at. Under the lock."""
        if os.getpid() != self._pid:
            self._pid = os.getpid()
            self._inherited = self._handles  # kept, not closed: they are the parent's
            self._handles, self._threads, self._decoding = OrderedDict(), None, {}

    def _handle(self) -> Reader:
        """This thread's handle, opened on first use."""
        owner = self._owner()
        with self._lock:
            self._follow_fork()
            if owner in self._handles:
                return self._handles[owner]
        handle = self._reader(self.path)
        with self._lock:
            self._handles[owner] = handle
        return handle

    def _drop_handle(self) -> None:
        """Forget this thread's handle: OpenSlide's stay in an error state after the first failed read."""
        if self._shared:
            return
        with self._lock:
            handle = self._handles.pop(threading.get_ident(), None)
        if handle is not None:
            handle.close()

    def close(self) -> None:
        """Close every handle of this process and free the cache."""
        with self._lock:
            ours = os.getpid() == self._pid
            handles = list(self._handles.values()) if ours else []
            threads = self._threads if ours else None
            self._handles, self._threads = OrderedDict(), None
            self._cache.clear()
            self._cache_bytes = 0
        if threads is not None:
            threads.shutdown()
        for handle in handles:
            handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _in_turn(work: Callable[[T], None], items: Sequence[T]) -> None:
    for item in items:
        work(item)


def _canvas(box: Box, inside: Box) -> tuple[RgbImage, NDArray[np.uint8]]:
    """Colours and states of a box whose part `inside` the scan will be filled; the rest is white and unscanned."""
    shape = (box.height, box.width)
    if inside == box:
        return np.empty((*shape, 3), np.uint8), np.zeros(shape, np.uint8)
    state = np.full(shape, PixelState.UNSCANNED, np.uint8)
    state[inside.y - box.y : inside.bottom - box.y, inside.x - box.x : inside.right - box.x] = PixelState.SCANNED
    return np.full((*shape, 3), 255, np.uint8), state


def _white(height: int, width: int) -> RgbImage:
    """A white block that takes no memory."""
    return np.broadcast_to(np.full(3, 255, np.uint8), (height, width, 3))


def _on_white(raw: NDArray[np.uint8]) -> _Block:
    """RGB or RGBA -> RGB on white; fully transparent pixels are unscanned."""
    if raw.shape[2] == 3:
        return _Block(np.ascontiguousarray(raw), PixelState.SCANNED)
    rgb, alpha = raw[..., :3], raw[..., 3:]
    if alpha.min() == 255:
        return _Block(np.ascontiguousarray(rgb), PixelState.SCANNED)
    if alpha.max() == 0:
        return _Block(_white(*raw.shape[:2]), PixelState.UNSCANNED)
    state = np.where(alpha[..., 0] == 0, PixelState.UNSCANNED, PixelState.SCANNED).astype(np.uint8)
    weight = alpha.astype(np.uint16)
    mixed = (rgb.astype(np.uint16) * weight + 255 * (255 - weight) + 127) // 255
    return _Block(mixed.astype(np.uint8), state)
