"""Does the result of a scan depend on how it was computed? Screens it twice, with other tiles and another batch size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from scipy.spatial import cKDTree

from slidescreen.batch import identify
from slidescreen.classify import Classifier
from slidescreen.config import Settings
from slidescreen.monolayer import Tiling
from slidescreen.pipeline import screen_slide
from slidescreen.records import ScreenedCell, SlideResult
from slidescreen.slide import open_slide

SHIFTED: Final = Tiling(side=768, shift=333)
SAME_UM: Final = 0.5
"""Centres this near are the same cell."""
NEAR_UM: Final = 5.0
NEAR_TIE: Final = 0.01
"""Probabilities this near to each other, or to a threshold, are a tie that the last bit of a sum may decide."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One cell on which the runs disagree. `what` names it and its place in level-0 px. `near_tie`: see `NEAR_TIE`."""

    what: str
    near_tie: bool


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """`cells` found by the first run, `differences` in the order of its cells, the largest change of a P(blast)."""

    cells: int
    differences: tuple[Difference, ...]
    largest_change: float

    @property
    def same(self) -> bool:
        """Whether the runs agree but for near-ties."""
        return all(d.near_tie for d in self.differences)


def check_scan(
    path: Path,
    classifiers: tuple[Classifier, Classifier],
    settings: Settings,
    um_per_px: float | Literal["auto"] | None = None,
) -> SelfCheck:
    """Screen a scan with the usual tiles and the first classifier, and with shifted tiles of another size and the second.

    Raises what screening raises.
    """
    results = []
    for classifier, tiling in zip(classifiers, (Tiling(), SHIFTED), strict=True):
        with open_slide(path) as slide:
            info = identify(slide, um_per_px)
            results.append(screen_slide(slide, info, classifier, settings, iter, lambda *_: None, tiling=tiling))
    return compare(results[0], results[1], settings)


def compare(first: SlideResult, second: SlideResult, settings: Settings) -> SelfCheck:
    """Pair the cells of two results by place and list what differs."""
    um = first.slide.scale.um_per_px
    pairs, alone = _pair(first.cells, second.cells, um)
    differences = [Difference(f"{_named(c)} was found in run {run} only", False) for run, c in alone]
    change = 0.0
    for a, b in pairs:
        apart = um * float(np.hypot(a.cell.centre.x - b.cell.centre.x, a.cell.centre.y - b.cell.centre.y))
        if apart > SAME_UM:
            differences.append(Difference(f"{_named(a)} moved by {apart:.2f} um", False))
        if (a.status, a.label) != (b.status, b.label):
            what = f"{_named(a)} is {a.status} {a.label} in run 1, {b.status} {b.label} in run 2"
            differences.append(Difference(what, _tied(a, settings) and _tied(b, settings)))
        if a.p_blast is not None and b.p_blast is not None:
            change = max(change, abs(a.p_blast - b.p_blast))
            if abs(a.p_blast - b.p_blast) > NEAR_TIE:
                what = f"{_named(a)} has P(blast) {a.p_blast:.3f} in run 1, {b.p_blast:.3f} in run 2"
                differences.append(Difference(what, False))
    return SelfCheck(len(first.cells), tuple(differences), change)


def _pair(
    first: Sequence[ScreenedCell], second: Sequence[ScreenedCell], um_per_px: float
) -> tuple[list[tuple[ScreenedCell, ScreenedCell]], list[tuple[int, ScreenedCell]]]:
    """Cells that are each other's nearest within 5 um, and those left alone with the number of their run."""
    places = [np.array([(c.cell.centre.x, c.cell.centre.y) for c in cells]).reshape(-1, 2) for cells in (first, second)]
    if not len(first) or not len(second):
        return [], [(1, c) for c in first] + [(2, c) for c in second]
    apart, there = cKDTree(places[1]).query(places[0])
    _, back = cKDTree(places[0]).query(places[1])
    mutual = [i for i in range(len(first)) if back[there[i]] == i and apart[i] * um_per_px <= NEAR_UM]
    taken = {int(there[i]) for i in mutual}
    kept = set(mutual)
    alone = [(1, c) for i, c in enumerate(first) if i not in kept]
    alone += [(2, c) for j, c in enumerate(second) if j not in taken]
    return [(first[i], second[int(there[i])]) for i in mutual], alone


def _tied(cell: ScreenedCell, settings: Settings) -> bool:
    """Whether a cell's two best classes, or its numbers and the thresholds of being typed, lie within a near-tie."""
    if cell.probabilities is None:
        return False
    best, second = np.sort(cell.probabilities)[::-1][:2]
    limits = settings.differential
    beyond = [best - second, best - limits.min_probability, best - second - limits.min_margin, cell.outlier]
    return any(value is not None and abs(value) <= NEAR_TIE for value in beyond)


def _named(cell: ScreenedCell) -> str:
    return f"cell {cell.id} at {cell.cell.centre.x:.0f}, {cell.cell.centre.y:.0f}"
