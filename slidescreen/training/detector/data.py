"""What the detector learns from: fields with boxes, expert masks, and images of single cells, as labelled samples in memory.

Every sample is kept at 0.2 um/px, fine enough to be enlarged 1.4 times at the network's scale.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slidescreen.detect import DetectSettings, measure_stain
from slidescreen.errors import UsageError
from slidescreen.records import RgbImage
from slidescreen.slide import read_image

SAMPLE_UM_PER_PX: Final = 0.2
IGNORED: Final = 255
"""In label maps: nothing is known about the px."""

CAMERAS: Final = {"bccd": 0.0725, "bcd": 0.0926, "raabin": 0.0549, "cellavision": 0.0950}
"""um/px of the cameras of the fields."""
MASK_SETS: Final = {"1": 0.11, "2": 0.088}
"""um/px of the sets of expert masks, estimated; of the second from its red cells, 7.5 um."""

LEUKOCYTE, PLATELET, ARTEFACT = 0, 1, 2
HELD_BACK: Final = 5
"""Every fifth expert mask of each set is kept for measuring."""
TUNING: Final = 8
"""Every eighth training field is kept for choosing thresholds."""
CORE_UM: Final = {LEUKOCYTE: 2.5, PLATELET: 1.0}
AROUND_UM: Final = {LEUKOCYTE: 10.0, PLATELET: 4.5}
INNER_RIM, OUTER_RIM = 0.80, 1.08
"""A box's ellipse is body up to the inner share of its radius and ground from the outer one on; between, unknown."""

UNSURE_STAIN: Final = 0.08
"""Nuclear stain nearer to the colour rules' threshold than this tells nothing."""


@dataclass(frozen=True, slots=True)
class Target:
    """One labelled body: centre in px of the sample, kind (index into `KINDS`), diameter in um."""

    x: float
    y: float
    kind: int
    diameter_um: float


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """`image` (h, w, 3) RGB at 0.2 um/px. `bodies` (h, w) uint8: 0 ground, k the k-th target, 255 unknown. `nuclei` (h, w)
    uint8: 0, 1, 255 unknown. `centres_known` (h, w) uint8: whether a centre here would be labelled."""

    image: RgbImage
    bodies: NDArray[np.uint8]
    nuclei: NDArray[np.uint8]
    centres_known: NDArray[np.uint8]
    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class LabelledBox:
    """A labelled box in px of its image."""

    label: str
    xmin: float
    ymin: float
    xmax: float
    ymax: float


@dataclass(frozen=True, slots=True, eq=False)
class LabelledField:
    """A field: path, camera, um/px and its boxes."""

    path: Path
    camera: str
    um_per_px: float
    boxes: tuple[LabelledBox, ...] = field(default=())


def list_fields(folder: Path, split: str) -> list[LabelledField]:
    """The fields of a split ("train" or "val"), by file name. Raises UsageError when the folder holds no `fields.csv`."""
    boxes: defaultdict[tuple[str, str], list[LabelledBox]] = defaultdict(list)
    for row in _rows(folder / "fields.csv"):
        if row["file"].startswith(f"{split}/"):
            sides = (float(row[k]) for k in ("xmin", "ymin", "xmax", "ymax"))
            boxes[row["file"], row["camera"]].append(LabelledBox(row["label"], *sides))
    return [LabelledField(folder / file, camera, CAMERAS[camera], tuple(boxes[file, camera])) for file, camera in sorted(boxes)]


def split_tuning(fields: Sequence[LabelledField]) -> tuple[list[LabelledField], list[LabelledField]]:
    """Training fields -> (to learn from, to choose thresholds on): every eighth of each camera is kept."""
    learn, tune = [], []
    for camera in CAMERAS:
        own = [f for f in fields if f.camera == camera]
        tune += own[::TUNING]
        learn += [f for i, f in enumerate(own) if i % TUNING]
    return learn, tune


def list_masks(folder: Path, *, held_back: bool) -> list[tuple[Path, Path, float]]:
    """(image, mask, um/px) of the expert masks: every fifth of each set, or the others."""
    found = []
    for name, um_per_px in MASK_SETS.items():
        own = sorted((r["file"], r["mask"]) for r in _rows(folder / "masks.csv") if r["set"] == name)
        found += [(folder / f, folder / m, um_per_px) for i, (f, m) in enumerate(own) if (i % HELD_BACK == 0) == held_back]
    return found


def list_cells(folder: Path, most: int = 130) -> list[tuple[Path, int, float, bool]]:
    """(image, kind, um/px, whether the ground around holds no other cells) of single cells: of smudge cells and platelets all,
    of each other class of each source at most `most`, evenly spread."""
    groups: defaultdict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in _rows(folder / "cells.csv"):
        if row["source_label"] != "Plasma cells":
            groups[row["source"], row["label"]].append(row)
    found = []
    for (source, label), rows in sorted(groups.items()):
        rows = sorted(rows, key=lambda r: r["file"])
        step = 1 if label in ("-", "KSC") else max(1, len(rows) // most)
        kind = PLATELET if label == "-" else LEUKOCYTE
        found += [(folder / r["file"], kind, float(r["um_per_px"]), source == "pbc") for r in rows[::step]]
    return found


def _rows(path: Path) -> Iterator[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); give the folder that holds it") from error


def field_sample(labelled: LabelledField) -> Sample:
    """Ellipses in the boxes of leukocytes and platelets as outlines, and what the colour rules call nucleus inside them."""
    scale = labelled.um_per_px / SAMPLE_UM_PER_PX
    image = _resized(read_image(labelled.path), scale)
    bodies, nuclei = np.zeros(image.shape[:2], np.uint8), np.zeros(image.shape[:2], np.uint8)
    stain = measure_stain(image.reshape(-1, 3), DetectSettings())
    nuclear = np.asarray(cv2.GaussianBlur(stain.nuclear(image), (0, 0), 1.0), np.float32) / np.float32(100)
    targets: list[Target] = []
    boxes = [b for b in labelled.boxes if b.label in ("WBC", "PLT")]
    for box in sorted(boxes, key=lambda b: -(b.xmax - b.xmin) * (b.ymax - b.ymin)):
        x, y = scale * (box.xmin + box.xmax) / 2, scale * (box.ymin + box.ymax) / 2
        a, b = max(1.0, scale * (box.xmax - box.xmin) / 2), max(1.0, scale * (box.ymax - box.ymin) / 2)
        kind = LEUKOCYTE if box.label == "WBC" else PLATELET
        targets.append(Target(x, y, kind, 2 * SAMPLE_UM_PER_PX * float(np.sqrt(a * b))))
        radius = _radius(image.shape, x, y, a, b)
        bodies[(radius > INNER_RIM) & (radius < OUTER_RIM) & (bodies == 0)] = IGNORED
        bodies[radius <= INNER_RIM] = len(targets)
        if kind == LEUKOCYTE:
            _draw_nucleus(nuclei, nuclear, radius, stain.threshold)
            bodies[(radius < 1) & (nuclei == 1) & (bodies == IGNORED)] = len(targets)
    return Sample(image, bodies, nuclei, np.ones_like(bodies), tuple(targets))


def _draw_nucleus(
    nuclei: NDArray[np.uint8], nuclear: NDArray[np.float32], radius: NDArray[np.float32], threshold: float
) -> None:
    inside = radius < OUTER_RIM
    sure = np.where(nuclear > threshold + UNSURE_STAIN, 1, np.where(nuclear < threshold - UNSURE_STAIN, 0, IGNORED))
    nuclei[inside] = sure[inside]
    if not 0.12 < float((nuclei[inside] == 1).mean()) < 0.9:  # the rules failed: learn nothing from them
        nuclei[inside] = IGNORED


def _radius(shape: tuple[int, ...], x: float, y: float, a: float, b: float) -> NDArray[np.float32]:
    """Distance from (x, y) in units of the ellipse's half axes a and b, (h, w)."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return np.asarray(np.hypot((columns + 0.5 - x) / a, (rows + 0.5 - y) / b), np.float32)


def mask_sample(image_path: Path, mask_path: Path, um_per_px: float) -> Sample:
    """One leukocyte with the expert's outline and nucleus."""
    scale = um_per_px / SAMPLE_UM_PER_PX
    mask = read_mask(mask_path)
    image = _resized(read_image(image_path), scale)
    size = (image.shape[1], image.shape[0])
    body = np.asarray(cv2.resize((mask > 0).astype(np.float32), size, interpolation=cv2.INTER_AREA)) > 0.5
    nucleus = np.asarray(cv2.resize((mask == 2).astype(np.float32), size, interpolation=cv2.INTER_AREA)) > 0.5
    y, x = (float(v.mean()) + 0.5 for v in np.nonzero(body))
    diameter = 2 * SAMPLE_UM_PER_PX * float(np.sqrt(body.sum() / np.pi))
    bodies = body.astype(np.uint8)
    target = Target(x, y, LEUKOCYTE, diameter)
    return Sample(image, bodies, nucleus.astype(np.uint8), np.ones_like(bodies), (target,))


def read_mask(path: Path) -> NDArray[np.uint8]:
    """(h, w) uint8: 0 ground, 1 cytoplasm, 2 nucleus."""
    with Image.open(path) as image:
        return np.asarray(image.convert("L") if image.mode != "P" else image, np.uint8)


def cell_sample(path: Path, kind: int, um_per_px: float, alone: bool) -> Sample:
    """A body of unknown outline in the middle; what lies around it is unknown too unless it is `alone`."""
    image = _resized(read_image(path), um_per_px / SAMPLE_UM_PER_PX)
    height, width = image.shape[:2]
    target = Target(width / 2, height / 2, kind, 12.0 if kind == LEUKOCYTE else 3.5)
    distance = SAMPLE_UM_PER_PX * _radius(image.shape, target.x, target.y, 1, 1)
    bodies = np.full((height, width), IGNORED, np.uint8)
    nuclei = np.full((height, width), IGNORED, np.uint8)
    if alone:
        bodies[distance > AROUND_UM[kind]] = nuclei[distance > AROUND_UM[kind]] = 0
    bodies[distance < CORE_UM[kind]] = 1
    if kind == PLATELET:
        nuclei[distance < AROUND_UM[kind]] = 0
    known = (distance < 4.0) | ((distance > AROUND_UM[kind]) & alone)
    return Sample(image, bodies, nuclei, known.astype(np.uint8), (target,))


def _resized(image: RgbImage, scale: float) -> RgbImage:
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size, interpolation=method), np.uint8)
