"""`Slide`: one scan, its levels, and pixels that do not depend on how they were asked for."""

from __future__ import annotations

import enum
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from slidescreen.errors import OpenError
from slidescreen.geometry import Box, Size
from slidescreen.records import RgbImage
from slidescreen.slide.fingerprint import fingerprint
from slidescreen.slide.readers import READERS, ImageReader, Reader, ReducingReader, StatedScale
from slidescreen.slide.truncation import missing_from

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
_Place = tuple[int, int, Box]
"""Column, row, and the block that lies there."""


class Slide:
    """One scan, opened read-only.

    Pixels are assembled from blocks on a fixed lattice, each decoded whole and kept in a bounded cache that threads share,
    so that a pixel never depends on the region it was asked with, and neighbouring reads decode a block once.
    Blocks of one read are decoded side by side where the reader lets threads share it; else each thread has its own handle.
    After a fork the child opens new ones.
    """

    def __init__(self, path: Path, reader: Callable[[Path], Reader], first: Reader) -> None:
        self.path = path
        self.reader = first.name
        self.vendor = first.vendor
        self.stated_scale: StatedScale | None = first.stated_scale
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
        self._decoding: dict[_Key, Future[_Block]] = {}
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

    def _assemble(
        self, box: Box, level: int, reduction: int, each: Callable[[Callable[[_Place], None], Sequence[_Place]], None]
    ) -> Pixels:
        size = self.levels[level].size
        limit = Box(0, 0, -(-size.width // reduction), -(-size.height // reduction))
        inside = box.intersect(limit)
        if inside == box:
            rgb, state = np.empty((box.height, box.width, 3), np.uint8), np.zeros((box.height, box.width), np.uint8)
        else:
            rgb = np.full((box.height, box.width, 3), 255, np.uint8)
            state = np.full((box.height, box.width), PixelState.UNSCANNED, np.uint8)
            state[inside.y - box.y : inside.bottom - box.y, inside.x - box.x : inside.right - box.x] = PixelState.SCANNED

        def place(at: tuple[int, int, Box]) -> None:
            column, row, whole = at
            block = self._block((level, reduction, column, row), whole)
            part = whole.intersect(box)
            source = np.s_[part.y - whole.y : part.bottom - whole.y, part.x - whole.x : part.right - whole.x]
            target = np.s_[part.y - box.y : part.bottom - box.y, part.x - box.x : part.right - box.x]
            rgb[target] = block.rgb[source]
            if isinstance(block.state, np.ndarray):
                state[target] = block.state[source]
            elif block.state != PixelState.SCANNED:
                state[target] = block.state

        each(place, list(self._lattice(inside, limit, level, reduction)))
        return Pixels(rgb, state)

    def _lattice(self, inside: Box, limit: Box, level: int, reduction: int) -> Iterator[_Place]:
        """The blocks that a box inside of `limit` touches: column, row, and the block clipped to `limit`."""
        width, height = (-(-side // reduction) for side in (self._blocks[level].width, self._blocks[level].height))
        if not inside.width or not inside.height:
            return
        for row in range(inside.y // height, (inside.bottom - 1) // height + 1):
            for column in range(inside.x // width, (inside.right - 1) // width + 1):
                yield column, row, Box(column * width, row * height, width, height).intersect(limit)

    def _block(self, key: _Key, box: Box) -> _Block:
        """From the cache, or from the thread that is at it, or decoded here."""
        with self._lock:
            self._follow_fork()
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
            mine = key not in self._decoding
            future = self._decoding.setdefault(key, Future())
        if not mine:
            return future.result()
        try:
            block = self._decode(key, box)
        except BaseException as error:
            with self._lock:
                del self._decoding[key]
            future.set_exception(error)
            raise
        with self._lock:
            del self._decoding[key]
            self.blocks_decoded += 1
            self._cache[key] = block
            self._cache_bytes += block.nbytes
            while self._cache_bytes > CACHE_BYTES and len(self._cache) > 1:
                self._cache_bytes -= self._cache.popitem(last=False)[1].nbytes
        future.set_result(block)
        return block

    def _decode(self, key: _Key, box: Box) -> _Block:
        level, reduction, column, row = key
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
            return _Block(_white(box), PixelState.UNREADABLE)
        return _on_white(raw, box)

    @staticmethod
    def _raw(handle: Reader, level: int, reduction: int, box: Box) -> NDArray[np.uint8]:
        if reduction == 1:
            return handle.read(level, box)
        assert isinstance(handle, ReducingReader)
        return handle.read_reduced(level, box, reduction)

    def _side_by_side(self, work: Callable[[T], None], items: Sequence[T]) -> None:
        """Do all items, in runs of a few, on the threads that this machine has cores for."""
        workers = min(MAX_THREADS, cores())
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


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_turn(work: Callable[[T], None], items: Sequence[T]) -> None:
    for item in items:
        work(item)


def _white(box: Box) -> RgbImage:
    """A white block that takes no memory."""
    return np.broadcast_to(np.full(3, 255, np.uint8), (box.height, box.width, 3))


def _on_white(raw: NDArray[np.uint8], box: Box) -> _Block:
    """RGB or RGBA -> RGB on white; fully transparent pixels are unscanned."""
    if raw.shape[2] == 3:
        return _Block(np.ascontiguousarray(raw), PixelState.SCANNED)
    rgb, alpha = raw[..., :3], raw[..., 3:]
    if alpha.min() == 255:
        return _Block(np.ascontiguousarray(rgb), PixelState.SCANNED)
    if alpha.max() == 0:
        return _Block(_white(box), PixelState.UNSCANNED)
    state = np.where(alpha[..., 0] == 0, PixelState.UNSCANNED, PixelState.SCANNED).astype(np.uint8)
    weight = alpha.astype(np.uint16)
    mixed = (rgb.astype(np.uint16) * weight + 255 * (255 - weight) + 127) // 255
    return _Block(mixed.astype(np.uint8), state)


def open_slide(path: Path, readers: Sequence[type[Reader]] = READERS) -> Slide:
    """Open a scan with the first reader that sees all there is: a vendor's format, or a pyramid with its scale. Of plain TIFFs
    in which none sees both, the reader that sees a pyramid is taken, then the one that finds a scale, then the first.

    Raises OpenError in one line: the file, each reader's own reason, the next step.
    """
    _require_file(path)
    reasons: list[str] = []
    best: tuple[type[Reader], Reader] | None = None
    for reader in readers:
        if best is not None and (_sees_all(best[1]) or reader is ImageReader):
            break
        try:
            handle = reader(path)
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:  # foreign readers raise anything on foreign files
            reasons.append(f"{reader.__name__.removesuffix('Reader').lower()}: {_one_line(error)}")
            continue
        if best is None or _merit(handle) > _merit(best[1]):
            best, handle = (reader, handle), best[1] if best else handle
        if handle is not best[1]:
            handle.close()
    if best is not None:
        _require_whole(path, best[1])
        return Slide(path, *best)
    raise OpenError(_refusal(path, reasons))


def _require_whole(path: Path, reader: Reader) -> None:
    start = missing_from(path) if reader.vendor in ("generic-tiff", "unknown", "ome") else None
    if start is not None:
        reader.close()
        raise OpenError(
            f"{path}: truncated: it goes on at byte {start}, but ends at byte {path.stat().st_size}; "
            "copy it again from the scanner"
        )


def _refusal(path: Path, reasons: list[str]) -> str:
    colours = [reason for reason in reasons if "not an 8-bit RGB image" in reason]
    if colours:
        return f"{path}: {colours[0].split(': ', 1)[1]}; export it from the scanner as 8-bit RGB"
    start = missing_from(path)
    if start is not None:
        return f"{path}: truncated: it goes on at byte {start}, but ends before; copy it again from the scanner"
    return (
        f"{path}: not a scan that can be read ({'; '.join(reasons)}). Likely a truncated, damaged or foreign file: "
        "copy it again from the scanner, or convert it to a tiled pyramidal TIFF"
    )


def _merit(reader: Reader) -> tuple[bool, bool]:
    return len(reader.sizes) > 1, reader.stated_scale is not None


def _sees_all(reader: Reader) -> bool:
    return all(_merit(reader)) or reader.vendor not in ("generic-tiff", "unknown", "ome")


def _require_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise OpenError(f"{path}: is a folder without scans")
        with path.open("rb") as file:
            if not file.read(1):
                raise OpenError(f"{path}: the file is empty (0 bytes); copy it again from the scanner")
    except FileNotFoundError:
        raise OpenError(f"{path}: no such file; check the path") from None
    except PermissionError:
        raise OpenError(f"{path}: no permission to read it; ask its owner, or run chmod +r on it") from None
    except OSError as error:
        raise OpenError(f"{path}: cannot be read ({_one_line(error)}); check the disk or the network share") from error


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
