"""How well a detector does: found and missed leukocytes per camera, and Dice of its outlines against the experts'."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from slidescreen.detect import Body, Detector
from slidescreen.records import Outline, RgbImage
from slidescreen.slide import read_image
from slidescreen.training.detector.data import BORDER_PX, PLATELET, LabelledBox, LabelledField, SingleCell, read_mask

SUBPIXELS: Final = 3
"""Outlines are drawn to 1/8 px."""

LEAST_UM: Final = 8.0
"""Narrower boxes are not taken for whole leukocytes."""
LEAST_FIELD_UM: Final = 12.0
"""Smaller rests of a field are no field."""

MakeDetector = Callable[[RgbImage, float], Detector]
"""(image, um/px) -> the detector to use on it: the colour rules are fitted to each image."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Leukocytes labelled, of them found, and bodies that are none."""

    labelled: int = 0
    found: int = 0
    false: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.labelled + other.labelled, self.found + other.found, self.false + other.false)

    @property
    def recall(self) -> float:
        """Share of the labelled that was found."""
        return self.found / max(1, self.labelled)

    @property
    def precision(self) -> float:
        """Share of what was found that is labelled."""
        return self.found / max(1, self.found + self.false)

    @property
    def f1(self) -> float:
        """Harmonic mean of recall and precision."""
        return 2 * self.found / max(1, self.labelled + self.found + self.false)

    @property
    def f2(self) -> float:
        """Likewise with recall weighed four times as heavily."""
        return 5 * self.found / max(1, 4 * self.labelled + self.found + self.false)


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """One field: its tally, the labelled leukocytes that were missed and the bodies that are none."""

    field: LabelledField
    tally: Tally
    missed: tuple[LabelledBox, ...]
    false: tuple[Body, ...]
    bodies: tuple[Body, ...]


def judge(labelled: LabelledField, bodies: Sequence[Body]) -> Judged:
    """A body that is not refused finds the leukocyte in whose box its centre lies; each at most once, nearest first."""
    cells = [b for b in labelled.boxes if b.label == "WBC"]
    found = [b for b in bodies if not b.refusal]
    pairs = []
    for i, box in enumerate(cells):
        for j, body in enumerate(found):
            if box.xmin <= body.centre.x <= box.xmax and box.ymin <= body.centre.y <= box.ymax:
                dx, dy = body.centre.x - (box.xmin + box.xmax) / 2, body.centre.y - (box.ymin + box.ymax) / 2
                pairs.append((dx * dx + dy * dy, i, j))
    boxes, used = set(range(len(cells))), set(range(len(found)))
    for _, i, j in sorted(pairs):
        if i in boxes and j in used:
            boxes.remove(i)
            used.remove(j)
    tally = Tally(len(cells), len(cells) - len(boxes), len(used))
    missed = tuple(cells[i] for i in sorted(boxes))
    return Judged(labelled, tally, missed, tuple(found[j] for j in sorted(used)), tuple(bodies))


def judge_fields(fields: Iterable[LabelledField], detector: MakeDetector) -> list[Judged]:
    """Every field, searched whole."""
    judged = []
    for labelled in fields:
        image = read_image(labelled.path)
        judged.append(judge(labelled, detector(image, labelled.um_per_px).find(image, labelled.um_per_px)))
    return judged


def of_whole_cells(judged: Judged) -> Judged:
    """The same without the labelled leukocytes that the border of the field cuts, found or not."""
    image = read_image(judged.field.path)
    aside = sum(box.label == "WBC" and _near_border(box, image) for box in judged.field.boxes)
    missed = tuple(box for box in judged.missed if not _near_border(box, image))
    labelled = judged.tally.labelled - aside
    return replace(judged, missed=missed, tally=Tally(labelled, labelled - len(missed), judged.tally.false))


def tally_cut(labelled: LabelledField, image: RgbImage, detector: Detector, seen_um: float, *, first: bool) -> Tally:
    """Of the whole leukocytes of a field, found when it is made to begin (`first`: left, top) or to end (right, bottom) where
    `seen_um` of them are left. Beyond the end the detector fills up with white. What else it finds is not counted."""
    unit, tally = labelled.um_per_px, Tally()
    for box in labelled.boxes:
        if box.label != "WBC" or _near_border(box, image) or (box.xmax - box.xmin) * unit < LEAST_UM:
            continue
        for part, x, y in _parts(image, box, round(seen_um / unit), first=first):
            if min(part.shape[:2]) * unit >= LEAST_FIELD_UM:
                centres = (b.centre for b in detector.find(part, unit) if not b.refusal)
                found = any(box.xmin <= c.x + x <= box.xmax and box.ymin <= c.y + y <= box.ymax for c in centres)
                tally += Tally(1, int(found))
    return tally


def _parts(image: RgbImage, box: LabelledBox, seen: int, *, first: bool) -> list[tuple[RgbImage, int, int]]:
    """The two parts of the image that begin, or end, where `seen` px of the box are left, with their places."""
    if first:
        x, y = int(box.xmax) - seen, int(box.ymax) - seen
        return [(np.ascontiguousarray(image[:, x:]), x, 0), (np.ascontiguousarray(image[y:]), 0, y)]
    return [
        (np.ascontiguousarray(image[:, : int(box.xmin) + seen]), 0, 0),
        (np.ascontiguousarray(image[: int(box.ymin) + seen]), 0, 0),
    ]


def _near_border(box: LabelledBox, image: RgbImage) -> bool:
    """Whether the border of its field cuts what is in the box."""
    height, width = image.shape[:2]
    return bool(min(box.xmin, box.ymin, width - box.xmax, height - box.ymax) <= BORDER_PX)


def tally_by_camera(judged: Iterable[Judged]) -> dict[str, Tally]:
    """Sums per camera."""
    sums: dict[str, Tally] = {}
    for one in judged:
        sums[one.field.camera] = sums.get(one.field.camera, Tally()) + one.tally
    return sums


def dice_of_masks(
    masks: Iterable[tuple[Path, Path, float]], detector: MakeDetector, *, refused: bool = False
) -> list[tuple[float, float]]:
    """(cell, nucleus) Dice per expert mask: of the body that covers it best; 0 where there is none, and of nuclei where the
    detector does not outline them. Other bodies are not punished here: they are false alarms. `refused`: what is no leukocyte
    to the detector is asked too."""
    scores = []
    for image_path, mask_path, um_per_px in masks:
        image, mask = read_image(image_path), read_mask(mask_path)
        bodies = [b for b in detector(image, um_per_px).find(image, um_per_px) if refused or not b.refusal]
        drawn = [(draw(mask.shape, [b.outline]), draw(mask.shape, b.nucleus)) for b in bodies]
        pairs = [(_dice(cell, mask > 0), _dice(nucleus & cell, mask == 2)) for cell, nucleus in drawn]
        scores.append(max(pairs, default=(0.0, 0.0)))
    return scores


def accepted(cells: Sequence[SingleCell], detector: Detector) -> int:
    """Images in whose middle a leukocyte is found: of platelets within 4 um; of leukocytes, which often lie in pairs, 10 um."""
    count = 0
    for cell in cells:
        image = read_image(cell.path)
        x, y, reach = image.shape[1] / 2, image.shape[0] / 2, (4.0 if cell.kind == PLATELET else 10.0) / cell.um_per_px
        bodies = [b for b in detector.find(image, cell.um_per_px) if not b.refusal]
        count += any(np.hypot(b.centre.x - x, b.centre.y - y) < reach for b in bodies)
    return count


def draw(shape: tuple[int, ...], outlines: Iterable[Outline]) -> NDArray[np.bool_]:
    """Filled polygons, (h, w) bool: the px whose middle lies inside."""
    fine = 4
    image = np.zeros((shape[0] * fine, shape[1] * fine), np.uint8)
    for outline in outlines:
        points = np.array([(fine * p.x - 0.5, fine * p.y - 0.5) for p in outline]) * (1 << SUBPIXELS)
        if len(points) > 2:
            cv2.fillPoly(image, [np.rint(points).astype(np.int32)], 1, cv2.LINE_8, SUBPIXELS)
    small = cv2.resize(image.astype(np.float32), (shape[1], shape[0]), interpolation=cv2.INTER_AREA)
    return np.asarray(small) >= 0.5


def _dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return 2 * float((a & b).sum()) / max(1.0, float(a.sum() + b.sum()))


def choose_score(fields: Sequence[LabelledField], detector: Callable[[float], Detector]) -> float:
    """The centre score with the best F2, cameras alike, on fields that were not learned from; the middle of equals.

    F2 holds a missed leukocyte for four times as bad as a false one: the classifier can still refuse what is none.
    """
    scores = [round(0.15 + 0.05 * i, 2) for i in range(13)]
    images = [(f, read_image(f.path)) for f in fields]
    lowest = detector(scores[0])
    bodies = [(f, lowest.find(image, f.um_per_px)) for f, image in images]

    def quality(score: float) -> float:
        judged = [judge(f, [b for b in own if b.score >= score]) for f, own in bodies]
        tallies = tally_by_camera(judged).values()
        return sum(t.f2 for t in tallies) / len(tallies)

    qualities = [quality(s) for s in scores]
    best = [s for s, q in zip(scores, qualities, strict=True) if q >= max(qualities) - 1e-9]
    return best[len(best) // 2]
