"""The frozen records that travel between the stages. Only `Patch` carries pixels of single cells."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from slidescreen.geometry import Box, Point, Size

Status = Literal["typed", "unsure", "edge", "rejected"]
"""typed: counted. unsure: which class it is cannot be told, shown and not counted. edge: cut by the border of the scan,
listed and not counted. rejected: no leukocyte of the 15 classes, by its shape or by the network's features, or a body whose
pixels cannot be read."""

PATCH_PX: Final = 400
PATCH_UM: Final = 29.0
"""Side of a patch: the native 0.0725 um/px of Matek et al. 2019."""

RgbImage = NDArray[np.uint8]
"""(H, W, 3) uint8, RGB."""

Outline = tuple[Point, ...]
"""Corners of a polygon, not closed: the first is not repeated."""


@dataclass(frozen=True, slots=True)
class Scale:
    """um per level-0 px and where the number was read ("--um-per-px", a property or a tag)."""

    um_per_px: float
    source: str


@dataclass(frozen=True, slots=True)
class RulerReading:
    """um per level-0 px by red cells, with the interval it lies in and how many cells were measured."""

    um_per_px: float
    low: float
    high: float
    cells: int


@dataclass(frozen=True, slots=True)
class ScaleCheck:
    """What the red cells say of the scale in use.

    verified: they agree within 25 %. overridden: they disagree, and the user's word was taken. estimated: the scale is theirs.
    not_measurable: too few isolated red cells; `reading` is None.
    """

    status: Literal["verified", "overridden", "estimated", "not_measurable"]
    reading: RulerReading | None = None


@dataclass(frozen=True, slots=True)
class SlideInfo:
    """What identifies a scan. `fingerprint` depends on the content only, not on path or time. `wanted_scale`: what the user
    said of the scale: um/px, "auto", or nothing. `icc`: whether the file has a colour profile, and whether it was applied."""

    path: str
    id: str
    vendor: str
    size: Size
    scale: Scale
    fingerprint: str
    reader: str
    wanted_scale: float | Literal["auto"] | None = None
    icc: Literal["none", "ignored", "applied"] = "none"


@dataclass(frozen=True, slots=True)
class Tile:
    """A piece of the working level. `core` boxes tile the level without overlap; `window` is the core plus the halo,
    clipped to the level. Both in px of the working grid (`slide.Grid`)."""

    core: Box
    window: Box


class Area(enum.IntEnum):
    """Classes of the scan's area; every um^2 is of exactly one.

    EMPTY: glass. TOO_THIN: the feathered edge, few red cells and those flat. MONOLAYER: where cells are read. TOO_THICK: red
    cells on top of each other, no ground between. OUT_OF_FOCUS: edges blurred beyond reading. INK: opaque marks. UNREADABLE:
    px that cannot be decoded.
    """

    UNSCANNED = 0
    EMPTY = 1
    TOO_THIN = 2
    MONOLAYER = 3
    TOO_THICK = 4
    OUT_OF_FOCUS = 5
    INK = 6
    UNREADABLE = 7

    @property
    def key(self) -> str:
        """Its name in results: "too_thin"."""
        return self.name.lower()


@dataclass(frozen=True, slots=True, eq=False)
class Overview:
    """The scan at a glance. `image` (h, w, 3) uint8 RGB, `area` (h, w) uint8 of `Area` codes and `screened` (h, w) bool cover
    the whole scan and have the same shape; `downsample` is level-0 px per overview px."""

    image: RgbImage
    area: NDArray[np.uint8]
    screened: NDArray[np.bool_]
    downsample: float


@dataclass(frozen=True, slots=True, eq=False)
class AreaMap:
    """`blocks` (rows, columns) uint8 of `Area`, each block `block_px` level-0 px wide and high (the last ones may reach
    beyond the scan). `screened_blocks` (rows, columns) bool: those searched for cells. `area_mm2`: see `SlideResult`; exact to
    the low level's px. `chosen`: whether a level-0 point lies in the area that the user chose, which covers parts of blocks;
    None where none was chosen."""

    blocks: NDArray[np.uint8]
    screened_blocks: NDArray[np.bool_]
    block_px: float
    area_mm2: Mapping[str, float]
    overview: Overview
    chosen: Callable[[float, float], bool] | None = None

    def screened(self, x: float, y: float) -> bool:
        """Whether the level-0 point lies in a screened block, and in the chosen area."""
        row, column = math.floor(y / self.block_px), math.floor(x / self.block_px)
        rows, columns = self.blocks.shape
        inside = 0 <= row < rows and 0 <= column < columns
        return inside and bool(self.screened_blocks[row, column]) and (self.chosen is None or self.chosen(x, y))


@dataclass(frozen=True, slots=True)
class Cell:
    """One stained body. `centre`, `box` and `outline` in level-0 px; `box` encloses the whole cell, or, where the detector
    knows no outlines, the nucleus plus a margin for cytoplasm.

    `nucleus_um2` is the stained nuclear area. `refusal` is empty, or says why the body is no leukocyte to be typed.
    `edge` tells that the border of the scan cuts it. `area_um2` of the whole cell; `eccentricity` of the ellipse of the same
    second moments, 0 for a circle; `focus`: sharpness, the steepest rise of lightness as a share of its range per um. These
    are None, and `outline` is empty, where the detector does not measure them.
    """

    centre: Point
    box: Box
    nucleus_um2: float
    edge: bool = False
    refusal: str = ""
    outline: Outline = ()
    area_um2: float | None = None
    eccentricity: float | None = None
    focus: float | None = None

    @property
    def equivalent_diameter_um(self) -> float | None:
        """Diameter of the circle of the cell's area."""
        return None if self.area_um2 is None else 2 * math.sqrt(self.area_um2 / math.pi)

    @property
    def countable(self) -> bool:
        """Whether the classifier is asked about it."""
        return not self.edge and not self.refusal


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """A cell and its 29 um x 29 um surroundings, (400, 400, 3) uint8 RGB, white beyond the scan."""

    cell: Cell
    pixels: RgbImage


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """A cell and its calibrated class probabilities, (15,) float32 summing to 1 in the model's class order; None when not
    asked.

    `outlier`: how far it is from the leukocytes that the model knows, above 0 beyond what it accepts (`rejection`); None where
    not asked, or where the model cannot tell. `agreement`: share of the orientations whose best class is the best one of their
    average; None where it was looked at in one only.
    """

    cell: Cell
    probabilities: NDArray[np.float32] | None
    outlier: float | None = None
    agreement: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ScreenedCell:
    """A cell as it is reported. `id` counts from 1 in the order of the output files; row `id - 1` there.

    `label` is the class code of highest probability, "" for edge and rejected cells. Probabilities are None where the
    classifier was not asked: of edge cells and of bodies that the detector refused. A cell that the classifier refused keeps
    them, so that the refusal can be judged. `reason`: why it is rejected or unsure, else "". `outlier`, `agreement`: see
    `Prediction`.
    """

    id: int
    cell: Cell
    status: Status
    label: str
    probabilities: NDArray[np.float32] | None
    p_blast: float | None
    p_atypical: float | None
    reason: str = ""
    outlier: float | None = None
    agreement: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Explanations:
    """Maps of what a score is sensitive to, see `explain`: row of the cell -> (400, 400) uint8 in the frame of its patch, 255
    for the highest. `method`: "saliency" or "gradcam". `target`: "class" (the class that the cell was given) or "blast"."""

    method: str
    target: str
    maps: Mapping[int, NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From which P_blast on a cell is a blast, from which P_atypical on it is atypical."""

    blast: float = 0.5
    atypical: float = 0.5


@dataclass(frozen=True, slots=True)
class Fraction:
    """`count` of `total` cells with probability >= `threshold`.

    `fraction` and the 95 % Clopper-Pearson limits `ci95` lie in [0, 1]; with `total` 0 they and the mean probability
    (over the same `total` cells) are None: there is no percentage of nothing.
    """

    count: int
    total: int
    threshold: float
    fraction: float | None
    ci95: tuple[float, float] | None
    mean_probability: float | None


@dataclass(frozen=True, slots=True)
class Differential:
    """The count of one slide.

    `counts`: typed cells per class code, all 15 codes. `leukocytes`: typed cells without smudge cells and erythroblasts.
    `percent` and `percent_ci95`: per leukocyte class, of `leukocytes`, in percent; None where there are no leukocytes.
    `blast` is over leukocytes, `atypical` over nucleated cells (all typed but smudge cells).
    `nrbc_per_100_wbc`, `smudge_per_100_wbc`: None where there are no leukocytes.
    """

    counts: Mapping[str, int]
    leukocytes: int
    percent: Mapping[str, float | None]
    percent_ci95: Mapping[str, tuple[float, float] | None]
    blast: Fraction
    atypical: Fraction
    nrbc_per_100_wbc: float | None
    smudge_per_100_wbc: float | None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What typed the cells: the model's name, the sha256 of its weights, its class order, one line on how it was measured, and
    its `limits`: what it cannot be trusted with, in full sentences.

    `identity`: hex digits that change with anything on which its answers depend: weights, input, temperature, rejection,
    thresholds. `temperature`: by which logits were divided; 1 where the model is not calibrated. `rejects`: whether it can tell
    what is no leukocyte of its classes.
    """

    name: str
    sha256: str
    classes: tuple[str, ...]
    measured: str
    identity: str = ""
    temperature: float = 1.0
    rejects: bool = False
    limits: str = ""


@dataclass(frozen=True, slots=True)
class Audit:
    """What became of every body that the finder reported, tile by tile: bodies = duplicates + outside + cells.

    `duplicates`: seen in the halo of a tile, owned by the one whose core holds the centre. `outside`: centre in a block that
    is not screened.
    """

    bodies: int
    duplicates: int
    outside: int
    cells: int


@dataclass(frozen=True, slots=True)
class Quality:
    """How a slide looks, to be compared with the others of its batch; None where nothing was screened.

    `focus`: median sharpness of the typed cells (see `Cell`). `stain`: mean optical density of the screened area against its
    brightest tenth. `tint`: log2 of its density in green over that in red; pink stains lie higher, blue ones lower.
    """

    focus: float | None = None
    stain: float | None = None
    tint: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class SlideResult:
    """Everything that is stored and reported of one slide.

    `area_mm2`: mm^2 per class (`Area.key`), which add up to the frame of the scan; scanned, which is all of them but unscanned
    and is also screened + not_screened. `settings`: the effective settings as plain values. `timings_s`: seconds per stage;
    stages overlap, so they add up to more than "total". `waiting_s`: seconds that stages waited for others.
    """

    slide: SlideInfo
    model: ModelInfo
    area_mm2: Mapping[str, float]
    cells: tuple[ScreenedCell, ...]
    differential: Differential
    overview: Overview
    settings: Mapping[str, Any]
    version: str
    created: str
    device: str
    timings_s: Mapping[str, float]
    waiting_s: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = field(default=())
    scale_check: ScaleCheck = field(default=ScaleCheck("not_measurable"))
    audit: Audit = field(default=Audit(0, 0, 0, 0))
    quality: Quality = field(default=Quality())

    @property
    def cell_counts(self) -> dict[str, int]:
        """Found = typed + unsure + edge + rejected."""
        statuses = [c.status for c in self.cells]
        counts = {s: statuses.count(s) for s in ("typed", "unsure", "edge", "rejected")}
        return {"found": len(statuses), **counts}

    @property
    def refusals(self) -> dict[str, int]:
        """Rejected cells by reason."""
        return self._reasons("rejected")

    @property
    def doubts(self) -> dict[str, int]:
        """Unsure cells by reason."""
        return self._reasons("unsure")

    def _reasons(self, status: Status) -> dict[str, int]:
        reasons: dict[str, int] = {}
        for c in self.cells:
            if c.status == status:
                reasons[c.reason] = reasons.get(c.reason, 0) + 1
        return reasons
