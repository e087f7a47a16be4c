"""Small sets of painted images of single cells, in each form that training reads."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLOURS: Mapping[str, tuple[int, int, int]] = {"MYO": (120, 60, 160), "LYT": (60, 60, 140), "NGS": (200, 120, 190)}
"""Each class a disc of its own colour: enough to be learned in a few steps."""


def paint_cell(label: str, seed: int, side: int = 400) -> NDArray[np.uint8]:
    """(side, side, 3) uint8: a disc a little off the middle on a light, noisy ground."""
    rng = np.random.default_rng([seed, sum(map(ord, label))])
    y, x = np.mgrid[:side, :side] / side - 0.5 - rng.uniform(-0.05, 0.05, 2)[:, None, None]
    image = np.full((side, side, 3), 235.0)
    image[np.hypot(x, y) < rng.uniform(0.15, 0.2)] = COLOURS[label]
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def write_published(folder: Path, each: int = 5, extra: Sequence[str] = ()) -> Path:
    """As AML-Cytomorphology_LMU is published: RGBA TIFF in class folders, `annotations.dat` beside them."""
    lines = []
    for label in COLOURS:
        (folder / label).mkdir(parents=True)
        for i in range(1, each + 1):
            name = f"{label}/{label}_{i:04d}.tiff"
            rgb = paint_cell(label, i)
            Image.fromarray(np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])).save(folder / name)
            lines.append(f"{name} {label} {'MYO' if i == 1 else 'nan'} {'LYT' if i == 1 else 'nan'}")
    (folder / "annotations.dat").write_text("\n".join([*lines, *extra]) + "\n")
    return folder


def write_table(folder: Path, each: int = 6, side: int = 120, patients: int = 3, **columns: str) -> Path:
    """`cells.csv` with `each` images of 0.29 um/px a class from `patients` patients; `columns` put one value in every line."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = []
    for label in COLOURS:
        for i in range(each):
            name = f"{label}_{i}.png"
            Image.fromarray(paint_cell(label, i, side)).save(folder / name)
            row = {"file": name, "label": label, "um_per_px": "0.29", "source": "painted", "patient": f"P{i % patients}"}
            rows.append(row | columns)
    write_rows(folder / "cells.csv", rows)
    return folder


def write_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """A CSV file with the columns of the first row."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
