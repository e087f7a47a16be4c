"""Pictures for fitting and measuring rejection: red cells, empty ground, platelets and leukocytes cut from labelled fields, and
leukocytes put out of focus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from slidescreen.patches import UM_PER_PX, resample
from slidescreen.records import PATCH_UM, RgbImage
from slidescreen.slide import read_image
from slidescreen.training.detector.data import LabelledField, list_fields

RED_CELL: Final = "red cells"
GROUND: Final = "empty ground"
PLATELET: Final = "platelets of fields"
OUT_OF_FOCUS: Final = {0.5: "leukocytes blurred, 0.5 um", 1.0: "out of focus, 1 um", 2.0: "out of focus, 2 um"}
"""Standard deviation of the blur in um -> kind. At 0.5 um most cells can still be typed: told, not asked to be refused."""

CAMERAS: Final = ("bccd", "bcd")
"""Cameras whose fields have all their cells labelled; the others label no red cells, or leukocytes as such."""
PER_FIELD: Final = {RED_CELL: 2, PLATELET: 2, GROUND: 1}
MOST: Final = 120
"""Pictures of a kind from one camera."""
EDGE_UM: Final = 10.0
"""Distance of a picture's centre from the border of the field; what lies beyond is mirrored."""
LEUKOCYTE_UM: Final = 5.0
"""Distance of a picture's centre from the box of any leukocyte."""
GROUND_UM: Final = 2.5
"""Distance of empty ground from any box."""


LEUKOCYTES: Final = "leukocytes of {}"
"""Kind of the leukocytes of a camera."""
INSIDE_UM: Final = 13.0
"""Distance of a leukocyte's centre from the border of the field."""


@dataclass(frozen=True, slots=True, eq=False)
class Cutout:
    """`group`: the field it was cut from; pictures of one field are never parted. `pixels` (400, 400, 3) uint8 RGB, 29 um."""

    kind: str
    group: str
    pixels: RgbImage


def cut_strangers(folder: Path, seed: int = 0) -> Iterator[Cutout]:
    """Red cells, ground and platelets of the fields in `folder`, from as many fields as can be.

    Raises UsageError when it holds no `fields.csv`.
    """
    rng = np.random.default_rng(seed)
    fields = [f for split in ("train", "val") for f in list_fields(folder, split) if f.camera in CAMERAS]
    taken: Counter[tuple[str, str]] = Counter()
    for i in rng.permutation(len(fields)).tolist():
        wanted = [kind for kind in PER_FIELD if taken[fields[i].camera, kind] < MOST]
        if wanted:
            image = read_image(fields[i].path)
            for kind, x, y in _places(fields[i], image.shape[:2], rng):
                if taken[fields[i].camera, kind] < MOST:
                    taken[fields[i].camera, kind] += 1
                    yield Cutout(kind, fields[i].path.name, _cut(image, x, y, fields[i].um_per_px))


def cut_leukocytes(folder: Path, seed: int = 0) -> Iterator[Cutout]:
    """Leukocytes of unknown class, from fields of every camera. Raises UsageError when the folder holds no `fields.csv`."""
    rng = np.random.default_rng(seed)
    fields = [f for split in ("train", "val") for f in list_fields(folder, split)]
    taken: Counter[str] = Counter()
    for i in rng.permutation(len(fields)).tolist():
        if taken[fields[i].camera] >= MOST:
            continue
        image, um = read_image(fields[i].path), fields[i].um_per_px
        for box in fields[i].boxes:
            x, y = (box.xmin + box.xmax) / 2, (box.ymin + box.ymax) / 2
            inside = min(x, y, image.shape[1] - x, image.shape[0] - y) * um > INSIDE_UM
            if box.label == "WBC" and inside and taken[fields[i].camera] < MOST:
                taken[fields[i].camera] += 1
                yield Cutout(LEUKOCYTES.format(fields[i].camera), fields[i].path.name, _cut(image, x, y, um))


def blurred(patch: RgbImage, sigma_um: float) -> RgbImage:
    """A patch out of focus: Gaussian blur of standard deviation `sigma_um`."""
    return np.asarray(cv2.GaussianBlur(patch, (0, 0), sigma_um / UM_PER_PX), np.uint8)


def _places(field: LabelledField, shape: tuple[int, ...], rng: np.random.Generator) -> Iterator[tuple[str, float, float]]:
    """Kind and centre in px of the field, away from its border and from leukocytes."""
    to_any, to_leukocyte = (_distance_um(field, shape, labels) for labels in (("WBC", "RBC", "PLT"), ("WBC",)))
    edge = int(np.ceil(EDGE_UM / field.um_per_px))
    allowed = to_leukocyte > LEUKOCYTE_UM
    allowed[:edge] = allowed[-edge:] = False
    allowed[:, :edge] = allowed[:, -edge:] = False
    for kind, label in ((RED_CELL, "RBC"), (PLATELET, "PLT")):
        centres = [((b.xmin + b.xmax) / 2, (b.ymin + b.ymax) / 2) for b in field.boxes if b.label == label]
        usable = [(x, y) for x, y in centres if y < shape[0] and x < shape[1] and allowed[int(y), int(x)]]
        for j in rng.permutation(len(usable))[: PER_FIELD[kind]].tolist():
            yield kind, *usable[j]
    y, x = np.unravel_index(int(np.where(allowed, to_any, 0).argmax()), to_any.shape)
    if allowed[y, x] and to_any[y, x] >= GROUND_UM:
        yield GROUND, float(x), float(y)


def _distance_um(field: LabelledField, shape: tuple[int, ...], labels: tuple[str, ...]) -> NDArray[np.float32]:
    """Distance of each px from the nearest box with one of the labels."""
    free = np.ones(shape, np.uint8)
    for box in field.boxes:
        if box.label in labels:
            free[int(box.ymin) : int(box.ymax) + 1, int(box.xmin) : int(box.xmax) + 1] = 0
    if free.all():
        return np.full(shape, np.inf, np.float32)
    return np.asarray(cv2.distanceTransform(free, cv2.DIST_L2, 5), np.float32) * np.float32(field.um_per_px)


def _cut(image: RgbImage, x: float, y: float, um_per_px: float) -> RgbImage:
    """29 um around a place, mirrored beyond the border of the field."""
    side = round(PATCH_UM / um_per_px)
    left, top = round(x - side / 2), round(y - side / 2)
    columns, rows = np.arange(left, left + side), np.arange(top, top + side)
    height, width = image.shape[:2]
    return resample(np.ascontiguousarray(image[_mirror(rows, height)][:, _mirror(columns, width)]))


def _mirror(index: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    folded = np.abs(index) % (2 * size - 2)
    return np.where(folded < size, folded, 2 * size - 2 - folded)
