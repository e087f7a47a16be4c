"""How much of a map lies on the cell, on real cells that experts outlined, planted off-centre.

python benchmarks/explaining.py --masks MASKS [--model NAME|DIR] [--cells 40]

A cell of set 2 (CellaVision) is moved 90 px from the middle of its patch; what comes into view beyond its image is plain
ground. Per method: the share of the map on the cell beside its share of the area, the share of the brightest 2 % of px that lie
on the cell, and how often the place where the smoothed map is highest does.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slidescreen.classify import ClassifySettings, load_classifier
from slidescreen.explain import ExplainSettings, explain
from slidescreen.model import DEFAULT_MODEL, find_model
from slidescreen.records import PATCH_PX, PATCH_UM
from slidescreen.slide import read_image
from slidescreen.training.detector.data import MASK_SETS

SHIFT_PX = ((90, 90), (-90, 90), (90, -90), (-90, -90))
BEYOND_PX = 300
SMOOTH_PX = 14.0


def planted(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], shift: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The patch with the cell off its middle, and where the cell is."""
    factor = MASK_SETS["2"] * PATCH_PX / PATCH_UM
    image = np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC), np.uint8)
    cell = np.asarray(cv2.resize((mask > 0).astype(np.uint8), image.shape[1::-1], interpolation=cv2.INTER_NEAREST), np.uint8)
    ground = [float(v) for v in np.median(image[cell == 0], axis=0)]
    around = (BEYOND_PX,) * 4
    image = np.asarray(cv2.copyMakeBorder(image, *around, cv2.BORDER_CONSTANT, value=ground), np.uint8)
    cell = np.asarray(cv2.copyMakeBorder(cell, *around, cv2.BORDER_CONSTANT, value=0), np.uint8)
    y, x = (int(np.mean(where)) - PATCH_PX // 2 - by for where, by in zip(np.nonzero(cell), shift, strict=True))
    part = np.s_[y : y + PATCH_PX, x : x + PATCH_PX]
    return image[part], cell[part].astype(bool)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=Path, required=True)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--cells", type=int, default=40)
    asked = parser.parse_args()
    with (asked.masks / "masks.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["set"] == "2"][: asked.cells]
    pairs = []
    for i, row in enumerate(rows):
        mask = np.asarray(Image.open(asked.masks / row["mask"]))
        pairs.append(planted(read_image(asked.masks / row["file"]), mask, SHIFT_PX[i % 4]))
    patches, cells = (np.stack(each) for each in zip(*pairs, strict=True))
    classifier = load_classifier(find_model(asked.model), ClassifySettings())
    area = cells.mean((1, 2))
    print(f"{len(rows)} cells, {100 * area.mean():.0f} % of the area, model {classifier.card.name}")
    for method in ("saliency", "gradcam"):
        maps = explain(patches, classifier, ExplainSettings(method=method))
        mass = np.array([m[cell].sum() / m.sum() for m, cell in zip(maps, cells, strict=True)])
        bright = np.array([cell[m >= np.quantile(m, 0.98)].mean() for m, cell in zip(maps, cells, strict=True)])
        peaks = [cell.ravel()[cv2.GaussianBlur(m, (0, 0), SMOOTH_PX).argmax()] for m, cell in zip(maps, cells, strict=True)]
        print(
            f"{method}: {100 * mass.mean():.0f} % of the map on the cell, {(mass / area).mean():.1f} times its area; "
            f"{100 * bright.mean():.0f} % of the brightest px; the peak in {sum(map(int, peaks))} of {len(peaks)}"
        )


if __name__ == "__main__":
    main()
