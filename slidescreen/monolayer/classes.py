"""Sums per block -> class per block, as a technician sorts a smear.

Every rule but glass looks at a block with its surroundings, 160 um wide, for a single field of a few cells says little. When
in doubt an area is called monolayer and screened: leukocytes not looked for are worse than cells that are hard to type. Where
nuclei make up a fair part of the stain, an area is never too thick or too thin, however few red cells there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from slidescreen.monolayer.blocks import REBLUR_PX, SUMS
from slidescreen.records import Area

AROUND: Final = 5
"""Blocks, of 32 um, that are judged together, side of the square."""
EMPTY_SHARE: Final = 0.015
"""A block is glass when less of it is stained at all, in it and in the blocks beside it."""
NUCLEI: Final = 0.2
"""Share of the stain that is nuclear from which on an area is neither too thick nor too thin."""
SHEET_GROUND: Final = 0.12
CROWDED_GROUND, CROWDED_OVERLAP = 0.25, 0.45
"""Too thick: ground on less than 12 % of the area, or on less than 25 % with 45 % of the stain overlapping."""
BARE_COVER: Final = 0.04
THIN_COVER, THIN_PALLOR = 0.12, 0.04
"""Too thin: stain on less than 4 % of the area, or on less than 12 % with pallor on less than 4 % of the stain."""
BLURRED_UM: Final = 0.85
"""Out of focus: edges wider than this, measured by `edge_blur_um`. Sharp and soft cameras, a phone among them, measure
0.2-0.45 um; smears blurred by a Gaussian of 1.5-2 um, 1.0-1.3."""
INK_SHARE: Final = 0.95
INK_AROUND: Final = 0.7
INK_BORDER: Final = 0.06
"""Ink: opaque on 95 % of a block and on 70 % of its neighbourhood of 3 x 3; nuclei leave gaps, even in a sheet of
blasts. Beside such blocks, those with 6 % opaque,
or nothing but a little of it, are the mark's border."""


@dataclass(frozen=True, slots=True)
class MonolayerSettings:
    """`aoi`: auto screens the monolayer, all screens everything scanned; otherwise the chosen area, as the user named it, whose
    outline is in `polygons`: rings of (x, y) in level-0 px per polygon, holes after the outer ring (see `with_aoi`).
    `max_unreadable`: the share of the scan's area that may be undecodable before the slide fails, 0-1."""

    aoi: str = "auto"
    max_unreadable: float = 0.05
    polygons: tuple[tuple[tuple[tuple[float, float], ...], ...], ...] = ()


def classify_blocks(sums: NDArray[np.float32], um_per_px: float) -> NDArray[np.uint8]:
    """(len(SUMS), rows, columns) of `block_sums` at `um_per_px` -> (rows, columns) uint8 of `Area`."""
    near = {name: _around(layer, AROUND) for name, layer in zip(SUMS, sums, strict=True)}
    here = dict(zip(SUMS, sums, strict=True))
    some = here["scanned"] > 0
    area, stain = np.maximum(near["scanned"], 1), np.maximum(near["stained"], 1)
    cover, nuclei = near["stained"] / area, near["nuclear"] / stain
    pallor, overlap = near["pallor"] / stain, near["overlap"] / stain
    crowded = (1 - cover < SHEET_GROUND) | ((1 - cover < CROWDED_GROUND) & (overlap > CROWDED_OVERLAP))
    sparse = (cover < BARE_COVER) | ((cover < THIN_COVER) & (pallor < THIN_PALLOR))
    codes = np.full(some.shape, Area.MONOLAYER, np.uint8)
    codes[sparse & (nuclei < NUCLEI)] = Area.TOO_THIN
    codes[crowded & (nuclei < NUCLEI)] = Area.TOO_THICK
    codes[edge_blur_um(near["sharp"], near["reblurred"], um_per_px) > BLURRED_UM] = Area.OUT_OF_FOCUS
    ink = _ink(here, some)
    foreign = (here["faint"] > EMPTY_SHARE * np.maximum(here["scanned"], 1)) & ~ink
    beside = cv2.dilate((foreign & some).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    codes[~beside] = Area.EMPTY
    codes[ink] = Area.INK
    codes[~some] = np.where(here["unreadable"] >= here["unscanned"], Area.UNREADABLE, Area.UNSCANNED)[~some]
    return codes


def edge_blur_um(sharp: NDArray[np.float32], reblurred: NDArray[np.float32], um_per_px: float) -> NDArray[np.float32]:
    """Width of the edges, standard deviation in um, from gradient energies before and after a known further blur.

    The gradient energy of a step blurred by s is proportional to 1 / s, so that the ratio r of the energies before and after a
    blur of b gives s = b / sqrt(r^2 - 1), whatever the contrast and the number of edges. 0 where there is nothing to judge.
    """
    ratio = sharp / np.maximum(reblurred, 1e-9)
    blur = REBLUR_PX * um_per_px / np.sqrt(np.maximum(np.square(ratio) - 1, 1e-3))
    return np.asarray(np.where(reblurred > 1e-9, blur, 0), np.float32)


def _ink(here: dict[str, NDArray[np.float32]], some: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The blocks inside a mark, and those of its border, at most two blocks further out."""
    opaque, scanned = here["opaque"], np.maximum(here["scanned"], 1)
    ink = (opaque > INK_SHARE * scanned) & (_around(opaque, 3) > INK_AROUND * _around(scanned, 3)) & some
    bare = (opaque > 0) & (here["faint"] - opaque < INK_BORDER * scanned)
    for _ in range(2):
        near = cv2.dilate(ink.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        ink = near & ((opaque > INK_BORDER * scanned) | bare) & some
    return np.asarray(ink)


def _around(layer: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Sums over `side` x `side` blocks, nothing beyond the border."""
    summed = cv2.boxFilter(layer, -1, (side, side), normalize=False, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(summed, np.float32).reshape(layer.shape)
