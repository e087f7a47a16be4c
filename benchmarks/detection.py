"""Recall and precision of the finder on real fields with boxes, each field taken as a scan of its own.

    python benchmarks/detection.py FIELDS [--split val] [--cameras bccd cellavision]

FIELDS holds fields.csv (file, camera, label, xmin, ymin, xmax, ymax) and the images. A found leukocyte is a hit when its
centre lies in the box of a white cell, each box taken once. Cells cut by the border of a field count like all others. Settings
were chosen on the training fields; the default split is the one they have not seen.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from slidescreen.detect import HALO_UM, DetectSettings, FindTally, find_cells, fit_detector, working_grid
from slidescreen.geometry import Box
from slidescreen.monolayer import MonolayerSettings, cut_tiles, map_area
from slidescreen.records import Cell, Scale
from slidescreen.slide import open_slide

UM_PER_PX = {"bccd": 0.0725, "bcd": 0.0926, "raabin": 0.0549, "cellavision": 0.0950}


def read_boxes(folder: Path, split: str) -> dict[str, dict[str, list[Box]]]:
    """Camera -> file -> boxes of its white cells, in px of the image."""
    fields: dict[str, dict[str, list[Box]]] = defaultdict(dict)
    with (folder / "fields.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["file"].startswith(f"{split}/"):
                boxes = fields[row["camera"]].setdefault(row["file"], [])
                if row["label"] == "WBC":
                    x0, y0, x1, y1 = (round(float(row[k])) for k in ("xmin", "ymin", "xmax", "ymax"))
                    boxes.append(Box(x0, y0, x1 - x0, y1 - y0))
    return fields


def find(path: Path, um_per_px: float) -> list[Cell]:
    """The leukocytes of one field, through the stages of the pipeline."""
    scale, settings = Scale(um_per_px, "benchmark"), DetectSettings()
    with open_slide(path) as slide:
        area = map_area(slide, scale, MonolayerSettings(aoi="all"))
        grid = working_grid(slide, scale)
        detector = fit_detector(slide, grid, area, settings)
        tiles = cut_tiles(grid, area, HALO_UM, scale)
        found = find_cells(slide, grid, tiles, area, scale, detector, settings, FindTally())
        return [cell for cell in found if not cell.refusal]


def hits(cells: list[Cell], boxes: list[Box]) -> int:
    """Found cells that can be paired with a box that holds their centre, nearest first, each box once."""
    pairs = [
        (np.hypot(c.centre.x - b.centre.x, c.centre.y - b.centre.y), i, j)
        for i, c in enumerate(cells)
        for j, b in enumerate(boxes)
        if b.expanded(2).contains(c.centre)
    ]
    used_cells: set[int] = set()
    used_boxes: set[int] = set()
    for _, i, j in sorted(pairs):
        if i not in used_cells and j not in used_boxes:
            used_cells.add(i)
            used_boxes.add(j)
    return len(used_boxes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fields", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--cameras", nargs="+", default=list(UM_PER_PX))
    parser.add_argument("--json", type=Path, help="also write the table here")
    args = parser.parse_args()
    fields, table = read_boxes(args.fields, args.split), {}
    print(f"{'camera':12} {'fields':>6} {'cells':>6} {'found':>6} {'hits':>6} {'recall':>7} {'precision':>9}")
    for camera in args.cameras:
        cells = found = hit = 0
        for name, boxes in sorted(fields[camera].items()):
            here = find(args.fields / name, UM_PER_PX[camera])
            cells, found, hit = cells + len(boxes), found + len(here), hit + hits(here, boxes)
        row = {"fields": len(fields[camera]), "cells": cells, "found": found, "hits": hit}
        table[camera] = row | {"recall": hit / cells, "precision": hit / found if found else None}
        print(f"{camera:12} {row['fields']:6} {cells:6} {found:6} {hit:6} {hit / cells:7.3f} {hit / max(1, found):9.3f}")
    if args.json:
        args.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
