"""The 15 leukocyte classes of Matek et al. 2019: codes, order, names, colours, and the sets the two questions are asked of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class CellClass:
    """One class: three-letter code, name for people, colour as #rrggbb."""

    code: str
    name: str
    colour: str


CLASSES: Final[tuple[CellClass, ...]] = (
    CellClass("BAS", "Basophil", "#3f51b5"),
    CellClass("EBO", "Erythroblast", "#795548"),
    CellClass("EOS", "Eosinophil", "#f57c00"),
    CellClass("KSC", "Smudge cell", "#78909c"),
    CellClass("LYA", "Lymphocyte (atypical)", "#00897b"),
    CellClass("LYT", "Lymphocyte (typical)", "#4caf50"),
    CellClass("MMZ", "Metamyelocyte", "#afb42b"),
    CellClass("MOB", "Monoblast", "#c2185b"),
    CellClass("MON", "Monocyte", "#7e57c2"),
    CellClass("MYB", "Myelocyte", "#d4a017"),
    CellClass("MYO", "Myeloblast", "#e53935"),
    CellClass("NGB", "Neutrophil (band)", "#29b6f6"),
    CellClass("NGS", "Neutrophil (segmented)", "#1e88e5"),
    CellClass("PMB", "Promyelocyte (bilobed)", "#ad6fd1"),
    CellClass("PMO", "Promyelocyte", "#ec407a"),
)
"""In the order of the published network's outputs (two erythroblast outputs merged)."""

CODES: Final[tuple[str, ...]] = tuple(c.code for c in CLASSES)
BY_CODE: Final[dict[str, CellClass]] = {c.code: c for c in CLASSES}

BLAST: Final = frozenset({"MYO", "MOB"})
"""P_blast is the sum over these (Matek et al. 2019)."""

ATYPICAL: Final = frozenset({"MYO", "MOB", "MYB", "MMZ", "PMO", "PMB", "EBO", "LYA"})
"""P_atypical is the sum over these: cells not normally present in peripheral blood (Matek et al. 2019)."""

SMUDGE: Final = "KSC"
ERYTHROBLAST: Final = "EBO"
NOT_LEUKOCYTE: Final = frozenset({SMUDGE, ERYTHROBLAST})
"""Outside the differential's denominator: given per 100 leukocytes beside it."""

DISPLAY_ORDER: Final[tuple[str, ...]] = (
    *("MYO", "MOB", "PMO", "PMB", "MYB", "MMZ"),
    *("NGB", "NGS", "EOS", "BAS", "MON", "LYT", "LYA"),
)
"""Leukocytes as a differential lists them: blasts first, then maturation, then the others."""


def probability_of(members: frozenset[str], probabilities: NDArray[np.float32], codes: Sequence[str]) -> float:
    """Sum of a cell's probabilities over the classes in `members`.

    `probabilities` is (15,) float32 in the order of `codes`. The result lies in [0, 1] up to rounding.
    """
    return float(sum(float(p) for p, code in zip(probabilities, codes, strict=True) if code in members))
