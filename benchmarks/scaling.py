"""Does time or memory of a screening grow faster than its cells, or its area?

    python benchmarks/scaling.py [--cells 100 1000 10000] [--areas 1 5 20] [--json scaling.json]

Scans are put together from a painted block with leukocytes and one without, whose JPEG tiles are repeated: `--cells` vary on
the area that the largest number needs (8 leukocytes a block of 0.022 mm2), `--areas` (mm2) vary with 100 cells each. Each is
screened by `slidescreen run` in processes of their own; the peak is the largest of any of them, the start is in the seconds.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tifffile
from telling import tell

from slidescreen.demo import paint_smear, write_pyramid
from slidescreen.geometry import Size

SIDE = 2048
LEVELS = 4
TILE = 256
PER_BLOCK = 8
UM = 0.0725
BLOCK_MM2 = (SIDE * UM / 1000) ** 2
FEW = 100
CHILD = """
import json, resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, capture_output=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="*", default=[100, 1000, 10000])
    parser.add_argument("--areas", type=float, nargs="*", default=[1.0, 5.0, 20.0])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds = [pages(folder / f"{n}.tif", {"NGS": n // 2, "MYO": n - n // 2}) for n in (0, PER_BLOCK)]
        room = max([*asked.cells, 0]) / PER_BLOCK * BLOCK_MM2
        wanted = [("cells", room, n) for n in asked.cells] + [("area", area, FEW) for area in asked.areas]
        for what, area, cells in wanted:
            scan = folder / "scan.tif"
            compose(scan, kinds, area, cells)
            rows.append({"varied": what} | screened(scan, folder / "out"))
            print(json.dumps(rows[-1]), flush=True)
    if asked.json:
        tell({"rows": rows}, asked.json)


def pages(path: Path, leukocytes: dict[str, int]) -> list[tuple[dict[str, Any], list[bytes]]]:
    """Of a painted block, by level: how its tiles are encoded, and they."""
    image, _ = paint_smear(Size(SIDE, SIDE), UM, leukocytes=leukocytes, seed=2)
    write_pyramid(path, image, UM, levels=LEVELS)
    found = []
    with tifffile.TiffFile(path) as tiff, path.open("rb") as file:
        for page in tiff.pages:
            tiles = []
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                file.seek(offset)
                tiles.append(file.read(count))
            options = {"photometric": page.photometric, "compression": page.compression}
            if page.subsampling and page.photometric == tifffile.PHOTOMETRIC.YCBCR:
                options["subsampling"] = page.subsampling
            assert page.tile == (TILE, TILE)
            found.append((options, tiles))
    return found


def compose(path: Path, kinds: list[list[tuple[dict[str, Any], list[bytes]]]], area_mm2: float, cells: int) -> None:
    """A square of blocks; those with cells are spread evenly over it."""
    side = math.ceil(math.sqrt(area_mm2 / BLOCK_MM2))
    full = min(side**2, math.ceil(cells / PER_BLOCK))
    chosen = {i * side**2 // full for i in range(full)}
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level in range(LEVELS):
            across = SIDE // TILE >> level  # tiles of a block

            def tiles(level: int = level, across: int = across) -> Iterator[bytes]:
                for row in range(side * across):
                    for column in range(side * across):
                        kind = row // across * side + column // across in chosen
                        yield kinds[kind][level][1][row % across * across + column % across]

            px = side * SIDE >> level
            tiff.write(
                tiles(),
                shape=(px, px, 3),
                dtype="uint8",
                tile=(TILE, TILE),
                subfiletype=1 if level else 0,
                resolution=(1e4 / UM / 2**level, 1e4 / UM / 2**level),
                resolutionunit="CENTIMETER",
                metadata=None,
                **kinds[0][level][0],
            )


def screened(scan: Path, out: Path) -> dict[str, Any]:
    """Seconds, cells and peak of one screening, everything of the area screened."""
    command = [sys.executable, "-m", "slidescreen", "run", str(scan), "-o", str(out), "--overwrite", "--aoi", "all"]
    began = time.perf_counter()
    said = subprocess.run([sys.executable, "-c", CHILD, *command, "--no-patches"], check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    summary_path = max(out.glob("[!.]*/summary.json"), key=lambda p: p.stat().st_mtime)
    summary = json.loads(summary_path.read_text())
    with (summary_path.parent / "cells.csv").open(newline="") as file:
        cells = sum(1 for row in csv.DictReader(file) if row["p_blast"])
    busy = summary["timings_s"]
    return {
        "mm2": round(summary["area_mm2"]["scanned"], 2),
        "cells": cells,
        "seconds": round(seconds, 1),
        "classify_ms_per_cell": round(1000 * busy["classify"] / max(1, cells), 1),
        "find_s_per_mm2": round((busy["search"] + busy["find"]) / summary["area_mm2"]["scanned"], 2),
        "report_s": round(seconds - busy["total"], 1),
        "peak_MiB": int(said.stdout),
    }


if __name__ == "__main__":
    main()
