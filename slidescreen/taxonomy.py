"""The leukocyte classes of Matek et al. 2019: codes, order, names, colours, the tree, and the sets the questions are asked of.

Cells are annotated with 18 classes, the leaves of the tree (Fig. 2b there). Networks know 15: leaves with too few images are
merged into the class above them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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

NOT_A_LEUKOCYTE: Final = "-"
"""Label of images that show none of the classes: platelets, clumps, artefacts."""


@dataclass(frozen=True, slots=True)
class Taxon:
    """A node of the tree. `code` is empty where a node only groups others; a leaf has no children."""

    name: str
    code: str = ""
    children: tuple[Taxon, ...] = ()

    def __iter__(self) -> Iterator[Taxon]:
        """The node and all below it, parents first."""
        yield self
        for child in self.children:
            yield from child


def _class(code: str, *children: Taxon) -> Taxon:
    return Taxon(BY_CODE[code].name, code, children)


BLASTS: Final = Taxon(
    "Blast",
    children=(
        _class("MYO", Taxon("Myeloblast without Auer rods", "MYO-N"), Taxon("Myeloblast with Auer rods", "MYO-A")),
        _class("MOB"),
    ),
)
NOT_PHYSIOLOGICAL: Final = Taxon(
    "Not present in healthy blood",
    children=(
        BLASTS,
        Taxon(
            "Immature granulocyte",
            children=(
                _class(
                    "PMO",
                    Taxon("Promyelocyte without Auer rods", "PMO-N"),
                    Taxon("Promyelocyte with Auer rods", "PMO-A"),
                    Taxon("Faggot cell", "PMO-F"),
                ),
                *(_class(code) for code in ("PMB", "MYB", "MMZ")),
            ),
        ),
        _class("EBO"),
        _class("LYA"),
    ),
)
PHYSIOLOGICAL: Final = Taxon(
    "Present in healthy blood",
    children=(
        Taxon(
            "Granulocyte", children=(Taxon("Neutrophil", children=(_class("NGS"), _class("NGB"))), _class("EOS"), _class("BAS"))
        ),
        _class("MON"),
        _class("LYT"),
    ),
)
TREE: Final = Taxon("Cell", children=(PHYSIOLOGICAL, NOT_PHYSIOLOGICAL, _class("KSC")))
"""The branches and the 18 leaves are those of Matek et al. 2019, Fig. 2b; the grouping in between, and the codes of the five
leaves that are no classes of their own (MYO-N to PMO-F), are ours."""

LEAVES: Final[tuple[str, ...]] = tuple(t.code for t in TREE if not t.children)
"""The 18 codes that cells may be annotated with."""
CLASS_OF: Final[Mapping[str, str]] = {
    below.code: taxon.code for taxon in TREE if taxon.code in BY_CODE for below in taxon if below.code
}
"""Any code of the tree -> the one of the 15 that it belongs to."""

RARE: Final = 10
"""Classes with fewer images were merged (Matek et al. 2019, Methods)."""


def merge_rare(images: Mapping[str, int], fewest: int = RARE) -> dict[str, str]:
    """Each leaf -> the class it is trained as, given the number of images of each leaf.

    The rule: where a leaf has fewer than `fewest` images, it and its neighbours become the class above them, if that has a
    code; else the leaf stays, however rare.
    """
    merged = {code: code for code in LEAVES}
    for taxon in TREE:
        if taxon.code and any(images.get(child.code, 0) < fewest for child in taxon.children):
            merged |= {below.code: taxon.code for below in taxon.children}
    return merged


BLAST: Final = frozenset(t.code for t in BLASTS if t.code in BY_CODE)
"""P_blast is the sum over these (Matek et al. 2019)."""

ATYPICAL: Final = frozenset(t.code for t in NOT_PHYSIOLOGICAL if t.code in BY_CODE)
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
