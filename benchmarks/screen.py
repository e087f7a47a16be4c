"""A whole scan, from the file to the report, against the straightforward script that a user would write.

    python benchmarks/screen.py SCAN [--input-px 400] [--plain-cells 40] [--json screen.json]

SCAN: a composed scan; 97 x 130 bccd fields are 20 mm2. The script reads the scan tile by tile by openslide-python at the
level nearest 0.3 um/px and finds what is dark and violet (threshold, connected areas), then cuts the cells that slidescreen
found, one by one, and types each in a loop of torch float32. Of its cells only `--plain-cells` are typed, the rest is
reckoned. It makes no maps of what scores are sensitive to and no report; slidescreen does.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openslide
import torch
from agreement import with_input
from classify import machine

from slidescreen.model import DEFAULT_MODEL, find_model, load_card, load_network, prepare

TILE_PX = 1024
SEARCH_UM = 0.3
PATCH_UM = 29.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--um-per-px", type=float, default=0.0725)
    parser.add_argument("--input-px", type=int, default=0)
    parser.add_argument("--plain-cells", type=int, default=40)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = with_input(find_model(DEFAULT_MODEL), asked.input_px, Path(folder))
        ours = screen(asked.scan, model, Path(folder) / "out")
        plain = straightforward(asked.scan, model, asked.um_per_px, ours.pop("centres"), asked.plain_cells)
    told = {
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "mm2": ours["mm2"],
        "input_px": load_card(find_model(DEFAULT_MODEL)).input_px if not asked.input_px else asked.input_px,
        "slidescreen": ours,
        "straightforward": plain,
        "ratio": round(plain["seconds"] / ours["seconds"], 2),
        "ratio_without_maps": round(plain["seconds"] / (ours["seconds"] - ours["busy_s"]["explain"]), 2),
        "ratio_without_finding": round((plain["seconds"] - plain["find"]) / ours["seconds"], 2),
    }
    print(json.dumps(told, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(told, indent=1))


def screen(scan: Path, model: Path, out: Path) -> dict[str, Any]:
    """`slidescreen run`, its start included."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "slidescreen", "run", str(scan), "-o", str(out), "--model", str(model), "--aoi", "all"]
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - began
    (folder,) = (path.parent for path in out.glob("[!.]*/summary.json"))
    said = json.loads((folder / "summary.json").read_text())
    with (folder / "cells.csv").open(newline="") as file:
        cells = [(float(r["x_px"]), float(r["y_px"])) for r in csv.DictReader(file) if r["p_blast"]]
    return {
        "seconds": round(seconds, 1),
        "per_200_cells": round(200 * seconds / max(1, len(cells)), 1),
        "device": said["device"],
        "cells": len(cells),
        "mm2": round(said["area_mm2"]["scanned"], 3),
        "busy_s": said["timings_s"],
        "waiting_s": said["waiting_s"],
        "peak_MiB": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
        "centres": cells,
    }


def straightforward(scan: Path, model: Path, um_per_px: float, centres: list[tuple[float, float]], most: int) -> dict[str, Any]:
    """The script."""
    began = time.perf_counter()
    card = load_card(model)
    network = load_network(model, card)
    slide = openslide.OpenSlide(scan)
    loaded = time.perf_counter() - began
    began = time.perf_counter()
    level = slide.get_best_level_for_downsample(SEARCH_UM / um_per_px)
    found = 0
    width, height = slide.level_dimensions[level]
    down = slide.level_downsamples[level]
    for y in range(0, height, TILE_PX):
        for x in range(0, width, TILE_PX):
            tile = np.asarray(slide.read_region((round(x * down), round(y * down)), level, (TILE_PX, TILE_PX)).convert("RGB"))
            violet = cv2.GaussianBlur(tile[..., 2].astype(np.float32) - tile[..., 1], (0, 0), 1.5) > 60
            found += int((cv2.connectedComponentsWithStats(violet.astype(np.uint8))[2][1:, cv2.CC_STAT_AREA] > 150).sum())
    find = time.perf_counter() - began
    some = centres[:: max(1, len(centres) // most)][:most]
    side = round(PATCH_UM / um_per_px)
    began = time.perf_counter()
    with torch.inference_mode():
        for x, y in some:
            region = slide.read_region((round(x - side / 2), round(y - side / 2)), 0, (side, side)).convert("RGB")
            patch = np.asarray(region.resize((400, 400)))[None]
            torch.softmax(network(prepare(torch.from_numpy(patch.copy()), card)), 1)
    per_cell = (time.perf_counter() - began) / len(some)
    return {
        "seconds": round(loaded + find + per_cell * len(centres), 1),
        "find": round(find, 1),
        "found": found,
        "s_per_cell": round(per_cell, 3),
        "cells_timed": len(some),
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    main()
