"""How fast a scan's pixels come, as ratios within one run, and how much memory that takes.

    python benchmarks/reading.py SCAN.tif... [--rounds 5] [--megapixels 160]
    python benchmarks/reading.py --memory

Contestants take turns, each with a handle of its own opened anew; ratios are medians over the rounds, by the clock and by the
seconds of processor used (on a machine that is shared, the steadier of the two). `bare`: imagecodecs on the bytes of each
tile that is needed, once, on as many threads as the reader uses, stitching nothing.
`--memory` paints 100,000 x 100,000 px, sparse, and tells by how much a process grows over its imports.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import openslide
import tifffile
import tiffslide

from slidescreen.geometry import Box, Point
from slidescreen.patches import cut_patches
from slidescreen.records import PATCH_PX, PATCH_UM, Cell, Scale
from slidescreen.slide import open_slide
from slidescreen.slide.slide import cores

NATIVE = Scale(PATCH_UM / PATCH_PX, "benchmark")
SIDE = 1024
"""Regions of a level read: of 512 to 4096 px, the size at which OpenSlide is fastest."""
PATCHES = 1000
SPARSE_PX = 100_000
LIMIT_MIB = 500
KINDS = ("pyramid", "flat-jpeg", "flat-deflate")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megapixels", type=int, default=160, help="how much of level 0 is read")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--grow", nargs=2, metavar=("PATH", "WHAT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.grow:
        print(json.dumps(grown(Path(options.grow[0]), options.grow[1])))
        return 0
    for path in options.scans:
        compare(path, options.rounds, options.megapixels)
    return memory() if options.memory else 0


def compare(path: Path, rounds: int, megapixels: int) -> None:
    with open_slide(path) as slide:
        size = slide.size
        print(f"{path.name}: {size.width} x {size.height} px, read by {slide.reader}, {cores()} cores")
    rows = max(SIDE, min(size.height, megapixels * 1_000_000 // size.width) // SIDE * SIDE)
    level = [Box(x, y, SIDE, SIDE) for y in range(0, rows, SIDE) for x in range(0, size.width - SIDE + 1, SIDE)]
    rng = np.random.default_rng(0)
    spread = rng.uniform((0, 0), (size.width, size.height), (PATCHES, 2))
    middles = rng.uniform((2000, 2000), (size.width - 2000, size.height - 2000), (PATCHES // 25, 2))
    near = np.repeat(middles, 25, axis=0) + rng.uniform(-1000, 1000, (PATCHES, 2))
    for name, boxes in (("level", level), *((k, patch_boxes(c)) for k, c in (("random", spread), ("clustered", near)))):
        contest(path, name, boxes, rounds)


def patch_boxes(centres: np.ndarray) -> list[Box]:
    return [Box.around(Point(float(x), float(y)), PATCH_PX) for x, y in centres]


def contest(path: Path, name: str, boxes: list[Box], rounds: int) -> None:
    contestants: dict[str, Callable[[], None]] = {
        "slidescreen": lambda: read_level(path, boxes) if name == "level" else read_patches(path, boxes),
        "openslide": lambda: read_openslide(path, boxes),
        "tiffslide": lambda: read_tiffslide(path, boxes),
        "bare": lambda: read_bare(path, boxes),
    }
    seconds: dict[str, list[tuple[float, float]]] = {key: [] for key in contestants}
    for _ in range(rounds):
        for key, read in contestants.items():
            clock, processor = time.perf_counter(), time.process_time()
            read()
            seconds[key].append((time.perf_counter() - clock, time.process_time() - processor))
    times = {key: np.array(value) for key, value in seconds.items()}
    megapixels = sum(box.width * box.height for box in boxes) / 1e6
    for key, value in times.items():
        clock, processor = (np.median(value / times["slidescreen"], axis=0)).tolist()
        speed = megapixels / np.median(value, axis=0)
        print(
            f"  {name:9} {key:11} {speed[0]:6.0f} Mpx/s, {speed[1]:6.0f} per s of processor; "
            f"slidescreen takes 1/{clock:.2f} of its time, 1/{processor:.2f} of its processor"
        )


def read_level(path: Path, boxes: Iterable[Box]) -> None:
    with open_slide(path) as slide:
        for box in boxes:
            slide.read_region(box)


def read_patches(path: Path, boxes: Iterable[Box]) -> None:
    half = PATCH_PX / 2
    cells = [Cell(Point(b.x + half, b.y + half), Box(b.x + 150, b.y + 150, 100, 100), 50.0) for b in boxes]
    with open_slide(path) as slide:
        assert len(list(map(id, cut_patches(slide, cells, NATIVE)))) == len(cells)


def read_openslide(path: Path, boxes: Iterable[Box]) -> None:
    with openslide.OpenSlide(path) as slide:
        for box in boxes:
            np.asarray(slide.read_region((box.x, box.y), 0, (box.width, box.height)))[..., :3]


def read_tiffslide(path: Path, boxes: Iterable[Box]) -> None:
    with tiffslide.TiffSlide(path) as slide:
        for box in boxes:
            slide.read_region((box.x, box.y), 0, (box.width, box.height), as_array=True)


def read_bare(path: Path, boxes: Sequence[Box]) -> None:
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        side, columns, rows = page.tilewidth, -(-page.imagewidth // page.tilewidth), -(-page.imagelength // page.tilelength)
        tiles = sorted(
            {
                row * columns + column
                for box in boxes
                for row in range(max(0, box.y // side), min(rows, (box.bottom - 1) // side + 1))
                for column in range(max(0, box.x // side), min(columns, (box.right - 1) // side + 1))
            }
        )
        file, offsets, counts = os.open(path, os.O_RDONLY), page.dataoffsets, page.databytecounts

        def decode(some: list[int]) -> None:
            for i in some:
                page.decode(os.pread(file, counts[i], offsets[i]), i, jpegtables=page.jpegtables)

        with ThreadPoolExecutor(cores()) as threads:
            list(threads.map(decode, [tiles[i : i + 4] for i in range(0, len(tiles), 4)]))
        os.close(file)


def memory() -> int:
    """Whether every path stays under the limit."""
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            path = Path(folder) / f"{kind}.tif"
            paint_sparse(path, kind)
            for what in ("area", "level", "patches"):
                command = [sys.executable, __file__, "--grow", str(path), what]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                worst = max(worst, found["mib"])
                print(f"  {kind:12} {what:8} {found['mib']:6.0f} MiB over the imports, {found['seconds']:.0f} s")
            path.unlink()
    print(f"most: {worst:.0f} MiB; limit {LIMIT_MIB} MiB")
    return 0 if worst < LIMIT_MIB else 1


def paint_sparse(path: Path, kind: str, side: int = SPARSE_PX) -> None:
    """One tile of noise repeated over a quarter of the scan, nothing elsewhere."""
    noise = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    tile = np.repeat(np.repeat(noise, 8, axis=0), 8, axis=1)
    compression = "deflate" if kind == "flat-deflate" else "jpeg"
    data = imagecodecs.zlib_encode(tile.tobytes()) if kind == "flat-deflate" else imagecodecs.jpeg8_encode(tile, level=85)
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level in range(7 if kind == "pyramid" else 1):
            length = -(-side // 2**level)
            columns = -(-length // 256)

            def tiles(columns: int = columns) -> Iterable[bytes]:
                for row in range(columns):
                    for column in range(columns):
                        yield data if row % 2 and column % 2 else b""

            tiff.write(
                tiles(),
                shape=(length, length, 3),
                dtype=np.uint8,
                tile=(256, 256),
                photometric="rgb",
                compression=compression,
                subfiletype=1 if level else 0,
                resolution=(1e4 / 0.0725, 1e4 / 0.0725),
                resolutionunit=3,
                metadata=None,
            )


def grown(path: Path, what: str) -> dict[str, object]:
    """What one way of reading adds to this process's largest size, in MiB."""
    from slidescreen.monolayer import MonolayerSettings, map_area

    before, started = peak_mib(), time.perf_counter()
    with open_slide(path) as slide:
        if what == "area":
            map_area(slide, NATIVE, MonolayerSettings())
        elif what == "level":
            for x in range(0, slide.size.width, 4096):
                slide.read_pixels(Box(x, 50_000, 4096, 4096))
        else:
            rng = np.random.default_rng(0)
            boxes = patch_boxes(rng.uniform(0, slide.size.width, (PATCHES, 2)))
            cells = (Cell(Point(b.x + 200, b.y + 200), Box(b.x + 150, b.y + 150, 100, 100), 50.0) for b in boxes)
            for _ in cut_patches(slide, cells, NATIVE):
                pass
        return {"mib": peak_mib() - before, "seconds": time.perf_counter() - started, "reader": slide.reader}


def peak_mib() -> float:
    """The largest size of this process so far."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    sys.exit(main())
