"""Paints a smear of known areas: thick head, monolayer, blurred band, feathered tail, ink, a corner that was not scanned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from slidescreen.demo import paint_smear
from slidescreen.geometry import Box, Size
from slidescreen.records import Area

UM_PER_PX = 0.25
GROUND = np.array((246, 240, 238), np.float32)


@dataclass(frozen=True)
class GradedSmear:
    """`pixels` (h, w, 4) uint8 RGBA. `areas`: where each class was painted, in px, 100 um inside its border."""

    pixels: NDArray[np.uint8]
    areas: Mapping[Area, Box]


def monolayer(width: int, height: int, seed: int, leukocytes: int = 0) -> NDArray[np.uint8]:
    return paint_smear(Size(width, height), UM_PER_PX, leukocytes={"NGS": leukocytes, "MYO": leukocytes}, seed=seed)[0]


def thick(layers: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Layers of cells on top of each other: their transmittances multiplied."""
    light = np.prod([layer.astype(np.float32) / GROUND for layer in layers], axis=0)
    return np.clip(light * GROUND, 0, 255).astype(np.uint8)


def feathered(width: int, height: int, seed: int, per_mm2: float = 700.0) -> NDArray[np.uint8]:
    """Few red cells, pulled out of shape and flat: no pallor."""
    rng = np.random.default_rng(seed)
    image = np.empty((height, width, 3), np.uint8)
    image[:] = GROUND.astype(np.uint8)
    for _ in range(int(per_mm2 * width * height * UM_PER_PX**2 * 1e-6)):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        axes = (round(5.0 / UM_PER_PX), round(2.6 / UM_PER_PX))
        cv2.ellipse(image, centre, axes, float(rng.integers(60)), 0, 360, (203, 168, 188), -1, cv2.LINE_AA)
    noise = rng.normal(0, 1.5, image.shape)
    return np.clip(cv2.GaussianBlur(image, (0, 0), 1.0) + noise, 0, 255).astype(np.uint8)


def graded_smear() -> GradedSmear:
    """3200 x 2400 px, 800 x 600 um: head on the left, tail on the right, a blurred band below, ink in the monolayer."""
    part, side = 1600, 400
    base = monolayer(part, part, 1, leukocytes=12)
    image = np.concatenate([base] * 3, axis=1)
    image = np.concatenate([image, image[:1200]], axis=0)  # 4800 x 2800
    layers = [np.roll(base, (i * 211, i * 331), (0, 1)) for i in range(4)]
    image[:part, :part] = thick(layers)
    image[:part, 2 * part :] = feathered(part, part, 2)
    image[2000:] = cv2.GaussianBlur(image[2000:], (0, 0), 1.8 / UM_PER_PX)
    cv2.rectangle(image, (2000, 500), (2700, 1100), (40, 35, 110), -1)
    alpha = np.full(image.shape[:2], 255, np.uint8)
    alpha[-700:, :700] = 0
    areas = {
        Area.TOO_THICK: Box(0, 0, part - side, part - side),
        Area.TOO_THIN: Box(2 * part + side, 0, part - side, part - side),
        Area.MONOLAYER: Box(part + side, 1150, part - 2 * side, 450),
        Area.OUT_OF_FOCUS: Box(1100, 2400, 3700, 400),
        Area.INK: Box(2140, 640, 420, 320),
        Area.UNSCANNED: Box(0, 2150, 650, 650),
    }
    return GradedSmear(np.dstack([image, alpha]), areas)


def write_rgba(path: Path, pixels: NDArray[np.uint8], um_per_px: float | None) -> None:
    """A tiled TIFF of one level; alpha, where there is any, is not premultiplied."""
    options = {"photometric": "rgb", "tile": (256, 256), "compression": "deflate", "metadata": None}
    if pixels.shape[2] == 4:
        options["extrasamples"] = ["unassalpha"]
    if um_per_px is not None:
        options |= {"resolution": (1e4 / um_per_px, 1e4 / um_per_px), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, **options)
