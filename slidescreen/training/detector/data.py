"""What the detector learns from: fields with boxes, expert masks, and images of single cells, as labelled samples in memory.

Every sample is kept at 0.2 um/px, fine enough to be enlarged 1.4 times at the network's scale.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.filters import threshold_otsu

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
CORE_UM: Final = {LEUKOCYTE: 2.5, PLATELET: 1.5}
PLATELET_UM2: Final = (2.0, 50.0)
PLATELET_REACH_UM: Final = 5.5
"""What is cut out as a platelet is of this size and comes no further from the middle of its image."""
AROUND_UM: Final = {LEUKOCYTE: 10.0, PLATELET: 5.0}
INNER_RIM, OUTER_RIM = 0.80, 1.08
"""A box's ellipse is body up to the inner share of its radius and ground from the outer one on; between, unknown."""

INNER_CELL: Final = 0.9
"""Of a box's ellipse so much is surely cell."""
LEAST_PX: Final = 80
DIVIDED: Final = 0.75
"""A cell falls into nucleus and cytoplasm where these explain so much of the variance of its darkness."""
UNSURE: Final = 0.15
"""Darkness nearer to the threshold than this, as a share of what nucleus and cytoplasm differ by, tells nothing."""
DOUBLE: Final = 0.5
"""Two boxes of leukocytes whose overlap is a larger share of their union are one cell's; the smaller one is believed."""
UNSTAINED: Final = 0.03
"""A leukocyte's box with a smaller share of nuclear stain is doubted where another one of its field has more."""
BORDER_PX: Final = 2.0
"""A box that comes as near to the border of its field is of a cell that the border cuts."""
SPECK_UM2: Final = 2.0
"""Smaller stained pieces at a border are taken for red cells or dirt, not for a nucleus."""
CYTOPLASM_UM: Final = 3.0
"""What is seen of a cell reaches about so far beyond what is seen of its nucleus."""
WHOLE_UM: Final = 9.0
"""Of a cell cut by two borders at least this much is seen in both directions, or it is taken for a quarter."""

GIANT_PLATELETS: Final = (
    "02_GT_5899553",
    "20_GT_11617887",
    "20_GT_11617942",
    "40_GT_11616920",
    "40_GT_11616954",
    "40_GT_11617045",
    "61_GT_13161208",
    "61_GT_13161334",
    "68_GT_13158301",
)
"""Images labelled giant platelet that show one, kept for measuring. Most of the others show nucleated cells: erythroblasts,
blasts, smudges."""
DOUBTED_LABELS: Final = ("Plasma cells", "Giant thrombocyte", "Thrombocyte aggregation")

Part = Literal["learn", "tune", "held back"]


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


def list_masks(folder: Path, part: Part) -> list[tuple[Path, Path, float]]:
    """(image, mask, um/px) of the expert masks of a part: to learn from, to choose on, or kept for measuring."""
    found = []
    for name, um_per_px in MASK_SETS.items():
        own = sorted((r["file"], r["mask"]) for r in _rows(folder / "masks.csv") if r["set"] == name)
        found += [(folder / f, folder / m, um_per_px) for i, (f, m) in enumerate(own) if _part(i) == part]
    return found


def _part(i: int) -> Part:
    """Every fifth mask is held back; of the others every eighth is for choosing."""
    if i % HELD_BACK == 0:
        return "held back"
    return "tune" if (i - i // HELD_BACK) % TUNING == 0 else "learn"


@dataclass(frozen=True, slots=True)
class SingleCell:
    """An image with one body in its middle. `kind`: index into `KINDS`. `alone`: the ground around holds no other cells."""

    path: Path
    source: str
    kind: int
    um_per_px: float
    alone: bool


def list_cells(folder: Path, part: Part, most: int = 200) -> list[SingleCell]:
    """Single cells: every fifth of each class of each source is held back. Of the others all smudge cells and platelets are
    listed, and about `most` of each other class of each source, evenly spread."""
    groups: defaultdict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in _rows(folder / "cells.csv"):
        if row["source_label"] not in DOUBTED_LABELS:
            groups[row["source"], row["label"]].append(row)
    found = []
    for (source, label), group in sorted(groups.items()):
        ordered = sorted(group, key=lambda r: r["file"])
        rows = [r for i, r in enumerate(ordered) if (i % HELD_BACK == 0) == (part == "held back")]
        step = 1 if label in ("-", "KSC") else max(1, len(rows) // most)
        kind = PLATELET if label == "-" else LEUKOCYTE
        found += [SingleCell(folder / r["file"], source, kind, float(r["um_per_px"]), source == "pbc") for r in rows[::step]]
    return found


def list_giants(folder: Path) -> list[SingleCell]:
    """Giant platelets of 6 um and more, none of which is learned from."""
    names = tuple(f"{n}.webp" for n in GIANT_PLATELETS)
    rows = sorted((r for r in _rows(folder / "cells.csv") if r["file"].endswith(names)), key=lambda r: r["file"])
    return [SingleCell(folder / r["file"], r["source"], PLATELET, float(r["um_per_px"]), alone=False) for r in rows]


def _rows(path: Path) -> Iterator[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); give the folder that holds it") from error


def field_sample(labelled: LabelledField) -> Sample:
    """Ellipses in the boxes of leukocytes and platelets as outlines, and the dark part of each leukocyte as nucleus."""
    scale = labelled.um_per_px / SAMPLE_UM_PER_PX
    whole = read_image(labelled.path)
    image = _resized(whole, scale)
    bodies, nuclei = np.zeros(image.shape[:2], np.uint8), np.zeros(image.shape[:2], np.uint8)
    centres_known = np.ones_like(bodies)
    stain = measure_stain(image.reshape(-1, 3), DetectSettings())
    stained = np.asarray(cv2.GaussianBlur(stain.nuclear(image), (0, 0), 1.0)) > 100 * stain.threshold
    trusted = any(float(_inside(stained, b, scale).mean()) > 3 * UNSTAINED for b in labelled.boxes if b.label == "WBC")
    targets: list[Target] = []
    for box in _once([b for b in labelled.boxes if b.label in ("WBC", "PLT")]):
        x, a = _axis(box.xmin, box.xmax, box.ymin, box.ymax, whole.shape[1], whole.shape[0], labelled.um_per_px)
        y, b = _axis(box.ymin, box.ymax, box.xmin, box.xmax, whole.shape[0], whole.shape[1], labelled.um_per_px)
        radius = _radius(image.shape, scale * x, scale * y, max(1.0, scale * a), max(1.0, scale * b))
        kind = LEUKOCYTE if box.label == "WBC" else PLATELET
        if kind == LEUKOCYTE and trusted and float(stained[radius < 1].mean()) < UNSTAINED:
            bodies[radius < OUTER_RIM] = nuclei[radius < OUTER_RIM] = IGNORED
            centres_known[radius < OUTER_RIM] = 0
            continue
        diameter = labelled.um_per_px * float(np.sqrt((box.xmax - box.xmin) * (box.ymax - box.ymin)))
        middle = scale * (box.xmin + box.xmax) / 2, scale * (box.ymin + box.ymax) / 2
        targets.append(Target(*middle, kind, diameter))
        bodies[(radius > INNER_RIM) & (radius < OUTER_RIM) & (bodies == 0)] = IGNORED
        bodies[radius <= INNER_RIM] = len(targets)
        if kind == LEUKOCYTE:
            _draw_nucleus(nuclei, image, radius)
            bodies[(radius < 1) & (nuclei == 1) & (bodies == IGNORED)] = len(targets)
    unlabelled = _cut_unlabelled(stained, bodies > 0)
    bodies[unlabelled] = nuclei[unlabelled] = IGNORED
    centres_known[unlabelled] = 0
    return Sample(image, bodies, nuclei, centres_known, tuple(targets))


def _cut_unlabelled(stained: NDArray[np.bool_], labelled: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What is stained as nuclei are, reaches the border and has no box, and what lies around it: most leukocytes of which a
    field shows little are not labelled, and would be learned as ground."""
    _, pieces = cv2.connectedComponents(stained.astype(np.uint8))
    small = np.flatnonzero(np.bincount(pieces.ravel()) < SPECK_UM2 / SAMPLE_UM_PER_PX**2)
    rim = np.concatenate((pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]))
    cut = np.setdiff1d(rim, (0, *small, *np.unique(pieces[labelled])))
    reach = 2 * round(CYTOPLASM_UM / SAMPLE_UM_PER_PX) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    return (cv2.dilate(np.isin(pieces, cut).astype(np.uint8), disc) > 0) & ~labelled


def _inside(image: NDArray[np.bool_], box: LabelledBox, scale: float) -> NDArray[np.bool_]:
    x0, y0 = int(scale * box.xmin), int(scale * box.ymin)
    return image[y0 : max(y0 + 1, int(scale * box.ymax)), x0 : max(x0 + 1, int(scale * box.xmax))]


def _once(boxes: Sequence[LabelledBox]) -> list[LabelledBox]:
    """The largest first, without those that are a second, larger box of the same leukocyte."""
    ordered = sorted(boxes, key=_area, reverse=True)
    kept = []
    for i, box in enumerate(ordered):
        if box.label != "WBC" or not any(o.label == "WBC" and _overlap(box, o) > DOUBLE for o in ordered[i + 1 :]):
            kept.append(box)
    return kept


def _area(box: LabelledBox) -> float:
    return (box.xmax - box.xmin) * (box.ymax - box.ymin)


def _overlap(one: LabelledBox, other: LabelledBox) -> float:
    """Of two boxes, the area they share / the area they cover."""
    width = min(one.xmax, other.xmax) - max(one.xmin, other.xmin)
    height = min(one.ymax, other.ymax) - max(one.ymin, other.ymin)
    shared = max(0.0, width) * max(0.0, height)
    return shared / max(1e-9, _area(one) + _area(other) - shared)


def _axis(
    low: float, high: float, across_low: float, across_high: float, size: float, across_size: float, um_per_px: float
) -> tuple[float, float]:
    """(middle, half axis) of a box's ellipse in one direction, px. Of a cell cut to less than half the ellipse is half one, its
    middle on the border; of what is seen of a cell in a corner, a quarter."""
    first, last = low <= BORDER_PX, high >= size - BORDER_PX
    corner = across_low <= BORDER_PX or across_high >= across_size - BORDER_PX
    extent, across = high - low, across_high - across_low
    cut = min(extent, across) * um_per_px < WHOLE_UM if corner else extent < 0.6 * across
    if first == last or not cut:
        return (low + high) / 2, extent / 2
    return (0.0 if first else size), extent


def _draw_nucleus(nuclei: NDArray[np.uint8], image: RgbImage, radius: NDArray[np.float32]) -> None:
    """What is dark in red and green light within the ellipse, by Otsu's threshold of this very cell; near the threshold nothing
    is said, and of a cell that does not fall into two nothing at all. One threshold for a field takes the cytoplasm of some
    cameras for nucleus."""
    inside = radius < OUTER_RIM
    nuclei[inside] = IGNORED
    dark = -np.log(cv2.GaussianBlur(image, (0, 0), 1.0)[..., :2].astype(np.float32).mean(2) + 4)
    own = dark[radius < INNER_CELL]
    if own.size < LEAST_PX:
        return
    threshold = threshold_otsu(own)
    nucleus, rest = own[own > threshold], own[own <= threshold]
    if min(len(nucleus), len(rest)) < LEAST_PX // 4:
        return
    gap = float(nucleus.mean() - rest.mean())
    if len(nucleus) * len(rest) / len(own) ** 2 * gap**2 < DIVIDED * float(own.var()):
        return
    away = (dark - threshold) / gap
    said = np.where(away > UNSURE, 1, np.where(away < -UNSURE, 0, IGNORED))
    nuclei[inside] = np.where(radius > 1, 0, said)[inside]


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


def cell_sample(cell: SingleCell) -> Sample:
    """A body of unknown outline in the middle; what lies around it is unknown too unless it is alone."""
    image, kind = _resized(read_image(cell.path), cell.um_per_px / SAMPLE_UM_PER_PX), cell.kind
    height, width = image.shape[:2]
    target = Target(width / 2, height / 2, kind, 12.0 if kind == LEUKOCYTE else 5.0)
    distance = SAMPLE_UM_PER_PX * _radius(image.shape, target.x, target.y, 1, 1)
    bodies = np.full((height, width), IGNORED, np.uint8)
    nuclei = np.full((height, width), IGNORED, np.uint8)
    if cell.alone:
        bodies[distance > AROUND_UM[kind]] = nuclei[distance > AROUND_UM[kind]] = 0
    bodies[distance < CORE_UM[kind]] = 1
    known = (distance < 4.0) | ((distance > AROUND_UM[kind]) & cell.alone)
    return Sample(image, bodies, nuclei, known.astype(np.uint8), (target,))


def platelet_sample(cell: SingleCell) -> Sample | None:
    """The platelet in the middle, outlined where its stain ends, to be cut out; None where that is not clear.

    Outlined in red light, which platelets absorb and red cells hardly do (Otsu's threshold).
    """
    image = _resized(read_image(cell.path), cell.um_per_px / SAMPLE_UM_PER_PX)
    distance = SAMPLE_UM_PER_PX * _radius(image.shape, image.shape[1] / 2, image.shape[0] / 2, 1, 1)
    red, near = np.asarray(cv2.GaussianBlur(image, (0, 0), 0.7))[..., 0], distance < PLATELET_REACH_UM
    threshold, _ = cv2.threshold(red[near][None], 0, 255, cv2.THRESH_OTSU)
    _, pieces = cv2.connectedComponents(((red <= threshold) & near).astype(np.uint8))
    middle = pieces[distance < CORE_UM[PLATELET]]
    body = pieces == np.bincount(middle[middle > 0], minlength=1).argmax() if middle.any() else np.zeros_like(near)
    area_um2 = float(body.sum()) * SAMPLE_UM_PER_PX**2
    if not PLATELET_UM2[0] < area_um2 < PLATELET_UM2[1] or (body & (distance > PLATELET_REACH_UM - 0.4)).any():
        return None
    y, x = (float(v.mean()) + 0.5 for v in np.nonzero(body))
    target = Target(x, y, PLATELET, 2 * float(np.sqrt(area_um2 / np.pi)))
    return Sample(image, body.astype(np.uint8), np.zeros_like(pieces, np.uint8), np.ones_like(pieces, np.uint8), (target,))


def _resized(image: RgbImage, scale: float) -> RgbImage:
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size, interpolation=method), np.uint8)
