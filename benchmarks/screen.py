"""A whole scan, from the file to the report, against the straightforward script that a user would write.

    python benchmarks/screen.py SCAN [--input-px 400] [--plain-cells 40] [--json screen.json]

SCAN: a composed scan; 97 x 130 bccd fields are 20 mm2. The script reads the scan tile by tile by openslide-python at the
level nearest 0.3 um/px and finds what is dark and violet (threshold, connected areas), then cuts the cells that slidescreen
found, one by one, and types each in a loop of torch float32. It finds in the whole scan; of its cells only `--plain-cells`,
drawn evenly over the scan, are cut and typed, and the rest is reckoned. It makes no maps of what scores are sensitive to and
no report; slidescreen does. Both are whole processes, their start included; peaks are of the largest process of each. The
first run of a model compiles it, which is not counted.
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
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openslide
import torch
from agreement import with_input
from telling import tell

from slidescreen.engines import ClassifySettings, open_engine
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
        open_engine(model, ClassifySettings("cpu"))  # compiled and kept
        ours = screen(asked.scan, model, Path(folder) / "out")
        centres = ours.pop("centres")
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            given = (asked.scan, model, asked.um_per_px, centres, asked.plain_cells, time.time())
            plain = process.submit(straightforward, *given).result()
    told = {
        "mm2": ours["mm2"],
        "input_px": load_card(find_model(DEFAULT_MODEL)).input_px if not asked.input_px else asked.input_px,
        "slidescreen": ours,
        "straightforward": plain,
        "ratio": round(plain["seconds"] / ours["seconds"], 2),
        "ratio_without_maps": round(plain["seconds"] / (ours["seconds"] - ours["busy_s"]["explain"]), 2),
        "ratio_without_finding": round((plain["seconds"] - plain["find"]) / ours["seconds"], 2),
    }
    tell(told, asked.json)


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
        "start_and_writing": round(seconds - sum(said["timings_s"][stage] for stage in ("total", "ruler", "explain")), 1),
        "waiting_s": said["waiting_s"],
        "peak_MiB": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
        "centres": cells,
    }


def straightforward(
    scan: Path, model: Path, um_per_px: float, centres: list[tuple[float, float]], most: int, begun: float
) -> dict[str, Any]:
    """The script. `begun`: when its process was asked for, by the clock."""
    imported = time.time() - begun
    card = load_card(model)
    network = load_network(model, card)
    slide = openslide.OpenSlide(scan)
    start = time.time() - begun
    began = time.perf_counter()
    found = find(slide, um_per_px)
    find_s = time.perf_counter() - began
    some = centres[:: max(1, len(centres) // most)][:most]
    side = round(PATCH_UM / um_per_px)
    cut_s = type_s = 0.0
    with torch.inference_mode():
        for x, y in some:
            began = time.perf_counter()
            region = slide.read_region((round(x - side / 2), round(y - side / 2)), 0, (side, side)).convert("RGB")
            patch = np.asarray(region.resize((400, 400)))[None]
            cut = time.perf_counter()
            torch.softmax(network(prepare(torch.from_numpy(patch.copy()), card)), 1)
            cut_s += (cut - began) / len(some)
            type_s += (time.perf_counter() - cut) / len(some)
    seconds = start + find_s + (cut_s + type_s) * len(centres)
    return {
        "seconds": round(seconds, 1),
        "per_200_cells": round(200 * seconds / max(1, len(centres)), 1),
        "start": round(start, 1),
        "of that importing": round(imported, 1),
        "find": round(find_s, 1),
        "found": found,
        "cut": round(cut_s * len(centres), 1),
        "classify": round(type_s * len(centres), 1),
        "s_per_cell": round(cut_s + type_s, 3),
        "cells_timed": len(some),
        "threads": torch.get_num_threads(),
        "peak_MiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def find(slide: openslide.OpenSlide, um_per_px: float) -> int:
    """Dark violet areas, tile by tile."""
    level = slide.get_best_level_for_downsample(SEARCH_UM / um_per_px)
    width, height = slide.level_dimensions[level]
    down = slide.level_downsamples[level]
    found = 0
    for y in range(0, height, TILE_PX):
        for x in range(0, width, TILE_PX):
            tile = np.asarray(slide.read_region((round(x * down), round(y * down)), level, (TILE_PX, TILE_PX)).convert("RGB"))
            violet = cv2.GaussianBlur(tile[..., 2].astype(np.float32) - tile[..., 1], (0, 0), 1.5) > 60
            found += int((cv2.connectedComponentsWithStats(violet.astype(np.uint8))[2][1:, cv2.CC_STAT_AREA] > 150).sum())
    return found


if __name__ == "__main__":
    main()
