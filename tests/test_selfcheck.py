from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import StandIn

from slidescreen.batch import identify
from slidescreen.config import Settings
from slidescreen.geometry import Point
from slidescreen.monolayer import Tiling
from slidescreen.pipeline import screen_slide
from slidescreen.records import SlideResult
from slidescreen.selfcheck import check_scan, compare
from slidescreen.slide import open_slide


def test_tiles_and_batches_do_not_change_the_result(scan: Path) -> None:
    found = check_scan(scan, (StandIn(16), StandIn(5)), Settings())
    assert found.cells >= 16
    assert found.same
    assert found.differences == ()
    assert found.largest_change < 1e-6


@pytest.fixture(scope="module")
def result(scan: Path) -> SlideResult:
    with open_slide(scan) as slide:
        return screen_slide(slide, identify(slide, None), StandIn(), Settings(), iter, lambda *_: None, tiling=Tiling(500, 77))


def test_every_kind_of_difference_is_told(result: SlideResult) -> None:
    cells = list(result.cells)
    assert compare(result, result, Settings()).same
    lost = compare(result, replace(result, cells=tuple(cells[1:])), Settings())
    assert [d.what for d in lost.differences] == [
        f"cell 1 at {cells[0].cell.centre.x:.0f}, {cells[0].cell.centre.y:.0f} was found in run 1 only"
    ]
    centre = cells[0].cell.centre
    moved = replace(cells[0], cell=replace(cells[0].cell, centre=Point(centre.x + 20, centre.y)))
    found = compare(result, replace(result, cells=(moved, *cells[1:])), Settings())
    assert "moved by 1.45 um" in found.differences[0].what
    typed = next(i for i, c in enumerate(cells) if c.status == "typed")
    other = replace(cells[typed], label="EOS", p_blast=(cells[typed].p_blast or 0) + 0.2)
    changed = compare(result, replace(result, cells=(*cells[:typed], other, *cells[typed + 1 :])), Settings())
    assert len(changed.differences) == 2
    assert not changed.same
    assert changed.largest_change == pytest.approx(0.2)


def test_near_ties_are_listed_and_forgiven(result: SlideResult) -> None:
    cells = list(result.cells)
    i = next(i for i, c in enumerate(cells) if c.status == "typed")
    tied = np.zeros(15, np.float32)
    tied[[10, 5]] = 0.5
    a, b = (replace(cells[i], probabilities=tied, label=label) for label in ("MYO", "LYT"))
    first, second = (replace(result, cells=(*cells[:i], c, *cells[i + 1 :])) for c in (a, b))
    found = compare(first, second, Settings())
    assert found.same
    assert [d.near_tie for d in found.differences] == [True]


def test_an_empty_scan_agrees_with_itself(empty_scan: Path) -> None:
    assert check_scan(empty_scan, (StandIn(), StandIn()), Settings()).same
