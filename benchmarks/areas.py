"""How much of a scan is screened, and as what its area is classed.

    python benchmarks/areas.py SCAN.tif... [--at-least 0.95]

Prints one line per scan; exit code 1 when less than the given share of what was scanned is screened.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from slidescreen.monolayer import MonolayerSettings, map_area
from slidescreen.records import Area
from slidescreen.scale import resolve_scale
from slidescreen.slide import open_slide


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="+", type=Path)
    parser.add_argument("--um-per-px", type=float, default=None)
    parser.add_argument("--at-least", type=float, default=0.0)
    options = parser.parse_args()
    enough = True
    for path in options.scans:
        with open_slide(path) as slide:
            scale = resolve_scale(path, slide.stated_scale, options.um_per_px)
            started = time.perf_counter()
            mm2 = map_area(slide, scale, MonolayerSettings()).area_mm2
            seconds = time.perf_counter() - started
        scanned = mm2["scanned"]
        share = mm2["screened"] / scanned if scanned else 0.0
        classes = ", ".join(f"{k.key} {100 * mm2[k.key] / scanned:.1f} %" for k in Area if scanned and mm2[k.key])
        print(f"{path.name}: {scanned:.3f} mm2 scanned, {100 * share:.1f} % screened ({classes}), {seconds:.1f} s")
        enough = enough and share >= options.at_least
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main())
