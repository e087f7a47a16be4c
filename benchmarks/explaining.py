"""How much of a map lies on the cell, on real cells that experts outlined, planted off-centre; and how long maps take.

    python benchmarks/explaining.py --masks MASKS [--model NAME|DIR] [--cells 40] [--input-px 400] [--json explaining.json]

A cell of set 2 (CellaVision) is moved 90 px from the middle of its patch; what comes into view beyond its image is plain
ground. Per method: the share of the map on the cell beside its share of the area, the share of the brightest 2 % of px that lie
on the cell, and how often the place where the smoothed map is highest does. Then seconds a map, in turns with the plain way
(float32, four patches at once, each layer on all cores), and the rank correlation of the px with its maps.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from agreement import with_input
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import spearmanr
from telling import tell

from slidescreen.classify import Classifier, ClassifySettings, load_classifier
from slidescreen.explain import ExplainSettings, explain
from slidescreen.model import DEFAULT_MODEL, find_model, prepare
from slidescreen.records import PATCH_PX, PATCH_UM
from slidescreen.slide import read_image
from slidescreen.training.detector.data import MASK_SETS

SHIFT_PX = ((90, 90), (-90, 90), (90, -90), (-90, -90))
BEYOND_PX = 300
SMOOTH_PX = 14.0
PLAIN_BATCH = 4


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
    parser.add_argument("--input-px", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with (asked.masks / "masks.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["set"] == "2"][: asked.cells]
    pairs = []
    for i, row in enumerate(rows):
        mask = np.asarray(Image.open(asked.masks / row["mask"]))
        pairs.append(planted(read_image(asked.masks / row["file"]), mask, SHIFT_PX[i % 4]))
    patches, cells = (np.stack(each) for each in zip(*pairs, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        model = with_input(find_model(asked.model), asked.input_px, Path(folder))
        classifier = load_classifier(model, ClassifySettings())
        exact = load_classifier(model, ClassifySettings("cpu", engine="torch", precision="float32"))
        told: dict[str, Any] = {"model": classifier.card.name, "input_px": classifier.card.input_px, "cells": len(rows)}
        told |= {"area": round(float(cells.mean()), 3), "methods": []}
        for method in ("saliency", "gradcam"):
            settings = ExplainSettings(method=method)  # type: ignore[arg-type]
            maps, expected = (explain(patches, each, settings) for each in (classifier, exact))
            told["methods"].append({"method": method} | placed(maps, cells) | compared(expected, maps))
        told["engine"] = classifier.told
        told["seconds a map"] = timed(patches, classifier, exact, asked.rounds)
    tell(told, asked.json)


def placed(maps: NDArray[np.float32], cells: NDArray[np.bool_]) -> dict[str, float]:
    """Where the maps lie."""
    mass = np.array([m[cell].sum() / m.sum() for m, cell in zip(maps, cells, strict=True)])
    bright = np.array([cell[m >= np.quantile(m, 0.98)].mean() for m, cell in zip(maps, cells, strict=True)])
    peaks = [cell.ravel()[cv2.GaussianBlur(m, (0, 0), SMOOTH_PX).argmax()] for m, cell in zip(maps, cells, strict=True)]
    return {
        "share on the cell": round(float(mass.mean()), 3),
        "times its area": round(float((mass / cells.mean((1, 2))).mean()), 2),
        "brightest px on the cell": round(float(bright.mean()), 3),
        "peaks on the cell": round(float(np.mean(peaks)), 3),
    }


def compared(expected: NDArray[np.float32], found: NDArray[np.float32]) -> dict[str, float]:
    """The maps beside those in float32, px by px."""
    ranks = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(expected, found, strict=True) if np.ptp(a)]
    return {"rank correlation, mean": round(float(np.mean(ranks)), 4), "least": round(float(np.min(ranks)), 4)}


def timed(patches: NDArray[np.uint8], classifier: Classifier, exact: Classifier, rounds: int) -> dict[str, dict[str, float]]:
    """Medians a map, in seconds of the clock and of all cores, and of the clock's ratios of each round."""
    ways = {
        "plain": lambda: plain(patches, exact),
        "float32": lambda: explain(patches, exact, ExplainSettings(method="saliency")),
    }
    ways["slidescreen"] = lambda: explain(patches, classifier, ExplainSettings(method="saliency"))
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for i in range(rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter(), time.process_time()
            way()
            if i:  # the first is to warm up
                took[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return {
        name: {
            "clock": round(statistics.median(s for s, _ in each) / len(patches), 3),
            "cores": round(statistics.median(s for _, s in each) / len(patches), 3),
            "to_plain": round(statistics.median(p / s for (p, _), (s, _) in zip(took["plain"], each, strict=True)), 2),
        }
        for name, each in took.items()
    }


def plain(patches: NDArray[np.uint8], classifier: Classifier) -> None:
    """Gradients as one would write them first; at most as many patches at once as fit into half a gigabyte."""
    size = max(1, min(PLAIN_BATCH, PLAIN_BATCH * 192**2 // classifier.card.input_px**2))
    for i in range(0, len(patches), size):
        x = prepare(torch.from_numpy(patches[i : i + size]), classifier.card).requires_grad_()
        torch.autograd.grad(torch.log_softmax(classifier.network(x), 1).amax(1).sum(), x)


if __name__ == "__main__":
    main()
