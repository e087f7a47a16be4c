"""Which cells are shown, in which gallery, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from slidescreen.records import ScreenedCell, SlideResult, Status
from slidescreen.taxonomy import BY_CODE, DISPLAY_ORDER, ERYTHROBLAST, SMUDGE

GALLERY_ORDER: Final = (*DISPLAY_ORDER, ERYTHROBLAST, SMUDGE)
"""All 15 classes: the differential's order, then the two outside its denominator."""

MOST_LIKELY: Final = 48
MOST_TILES: Final = 1000
MOST_EDGE: Final = 24
MOST_REJECTED: Final = 48


@dataclass(frozen=True, slots=True)
class Tile:
    """One cell as a picture with its numbers. `index` is its row in `SlideResult.cells`.

    `x`, `y`: centre, level-0 px. `per_mille`: the class probabilities in `GALLERY_ORDER`, "" where there are none.
    """

    index: int
    id: int
    code: str
    name: str
    status: Status
    probability: float | None
    p_blast: float | None
    p_atypical: float | None
    x: int
    y: int
    nucleus_um2: float
    reason: str
    per_mille: str


@dataclass(frozen=True, slots=True)
class Gallery:
    """Tiles under one heading; `total` cells of the kind were found. `folded`: closed until it is asked for."""

    key: str
    title: str
    code: str
    tiles: tuple[Tile, ...]
    total: int
    folded: bool = False


def choose(result: SlideResult) -> list[Gallery]:
    """The galleries that are not empty: the likeliest blasts, one per class, unsure, edge, rejected.

    At most `MOST_TILES` typed and unsure cells, shared out fairly; each gallery keeps its most blast-like cells.
    """
    cells, classes = result.cells, result.model.classes
    asked = [i for i, c in enumerate(cells) if c.label]
    kinds: dict[str, list[int]] = {code: [] for code in GALLERY_ORDER}
    kinds |= {"unsure": [], "edge": [], "rejected": []}
    for i, c in enumerate(cells):
        kinds.setdefault(c.label if c.status == "typed" else c.status, []).append(i)
    shared = [key for key in kinds if key not in ("edge", "rejected")]
    room = dict(zip(shared, share([len(kinds[key]) for key in shared], MOST_TILES), strict=True))
    room |= {"edge": MOST_EDGE, "rejected": MOST_REJECTED}

    def tiles(indices: Sequence[int], most: int) -> tuple[Tile, ...]:
        return tuple(tile(i, cells[i], classes) for i in sorted(indices, key=lambda i: _rank(cells[i]))[:most])

    top = Gallery("top", "Highest blast probability", "", tiles(asked, MOST_LIKELY), len(asked))
    rest = [
        Gallery(key, *_heading(key), tiles(members, room[key]), len(members), key not in GALLERY_ORDER)
        for key, members in kinds.items()
    ]
    return [gallery for gallery in (top, *rest) if gallery.tiles]


def tile(index: int, cell: ScreenedCell, classes: Sequence[str]) -> Tile:
    """The numbers under one picture; `classes` is the order of the cell's probabilities."""
    by_code: dict[str, float] = {}
    if cell.probabilities is not None:
        by_code = dict(zip(classes, np.asarray(cell.probabilities).tolist(), strict=True))
    return Tile(
        index=index,
        id=cell.id,
        code=cell.label,
        name=BY_CODE[cell.label].name if cell.label in BY_CODE else cell.label,
        status=cell.status,
        probability=by_code.get(cell.label),
        p_blast=cell.p_blast,
        p_atypical=cell.p_atypical,
        x=round(cell.cell.centre.x),
        y=round(cell.cell.centre.y),
        nucleus_um2=cell.cell.nucleus_um2,
        reason=cell.reason,
        per_mille=" ".join(str(round(1000 * by_code.get(code, 0.0))) for code in GALLERY_ORDER) if by_code else "",
    )


def share(sizes: Sequence[int], budget: int) -> list[int]:
    """How many of each group fit a common budget: small groups whole, the large ones equal parts of what is left."""
    given = [0] * len(sizes)
    left = budget
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    for done, i in enumerate(order):
        given[i] = min(sizes[i], left // (len(order) - done))
        left -= given[i]
    return given


def _rank(cell: ScreenedCell) -> tuple[float, int]:
    """Most blast-like first; cells without probabilities by number."""
    return (-1.0 if cell.p_blast is None else -cell.p_blast, cell.id)


def _heading(key: str) -> tuple[str, str]:
    """Title and class code of a gallery."""
    if key in BY_CODE:
        return BY_CODE[key].name, key
    titles = {
        "unsure": "Unsure which class, not counted",
        "edge": "Cut by the border of the scan, not counted",
        "rejected": "Rejected by the finder or by the model, not counted",
    }
    return titles.get(key, key), ""
