"""How well red cells measure the scale, and whether wrong tags are caught.

    python benchmarks/scale.py SCAN.tif...

Each scan has its truth beside it (same name, .json, with "um_per_px"), as `slidescreen demo` writes it. Prints one line per
scan; exit code 1 when an estimate is off by more than 12 % or a tag that is wrong by a factor of 0.1, 0.5, 2 or 10 passes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from slidescreen.errors import ScaleError
from slidescreen.records import RulerReading
from slidescreen.ruler import measure_scale
from slidescreen.scale import check_scale, settle_scale
from slidescreen.slide import StatedScale, open_slide

FACTORS = (0.1, 0.5, 2.0, 10.0)
TOLERANCE = 0.12


def refused(path: Path, um_per_px: float, reading: RulerReading | None) -> bool:
    """Whether a scan that states `um_per_px` fails as the pipeline would let it fail."""
    stated = StatedScale(um_per_px, um_per_px, "tag")
    try:
        scale = settle_scale(path, stated, None, lambda: reading)
        check_scale(path, scale, reading, trusted=False, estimated=False)
    except ScaleError as error:
        print(f"    {error}")
        return True
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="+", type=Path)
    sound = True
    for path in parser.parse_args().scans:
        truth = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["um_per_px"]
        with open_slide(path) as slide:
            started = time.perf_counter()
            reading = measure_scale(slide)
            seconds = time.perf_counter() - started
        if reading is None:
            print(f"{path.name}: {truth:.4f} um/px, not measurable ({seconds:.1f} s)")
            sound = False
            continue
        off = reading.um_per_px / truth - 1
        print(
            f"{path.name}: {truth:.4f} um/px, red cells {reading.um_per_px:.4f} ({reading.low:.4f}-{reading.high:.4f}), "
            f"{100 * off:+.1f} %, {reading.cells} cells, {seconds:.1f} s"
        )
        caught = [refused(path, truth * factor, reading) for factor in FACTORS]
        passes = not refused(path, truth, reading)
        print(f"    wrong tags caught: {dict(zip(FACTORS, caught, strict=True))}; true tag passes: {passes}")
        sound = sound and abs(off) <= TOLERANCE and all(caught) and passes
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
