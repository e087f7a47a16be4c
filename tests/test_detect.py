"""The finder on painted smears: recall, borders, refusals, colours. Real fields are measured in benchmarks/detection.py."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from slidescreen.demo import PaintedCell, paint_smear, write_pyramid
from slidescreen.detect import (
    HALO_UM,
    DetectSettings,
    FindTally,
    StainDetector,
    find_cells,
    fit_detector,
    look_at_tiles,
    measure_stain,
    working_grid,
)
from slidescreen.geometry import Point, Size
from slidescreen.monolayer import MonolayerSettings, cut_tiles, map_area
from slidescreen.records import Cell, RgbImage, Scale
from slidescreen.slide import open_slide

SCALE = Scale(0.0725, "test")
Smear = tuple[RgbImage, list[PaintedCell]]


def cells_of(path: Path, side: int = 1024, shift: int = 0, scale: Scale = SCALE) -> list[Cell]:
    chosen = DetectSettings()
    with open_slide(path) as slide:
        area = map_area(slide, scale, MonolayerSettings())
        grid = working_grid(slide, scale)
        detector = fit_detector(slide, grid, area, chosen)
        tiles = cut_tiles(grid, area, HALO_UM, scale, side=side, shift=shift)
        seen = look_at_tiles(slide, grid, tiles, scale, detector)
        return list(find_cells(seen, grid, area, scale, chosen, FindTally()))


def distances_um(cells: list[Cell], truth: list[PaintedCell]) -> NDArray[np.float64]:
    """Per painted cell, how far the nearest found leukocyte is."""
    found = np.array([(c.centre.x, c.centre.y) for c in cells if not c.refusal])
    painted = np.array([(t.centre.x, t.centre.y) for t in truth])
    apart = np.linalg.norm(painted[:, None] - found[None], axis=-1) * SCALE.um_per_px
    return np.asarray(apart.min(1))


def test_every_painted_leukocyte_is_found_and_hardly_anything_else(scan: Path, smear: Smear) -> None:
    cells = cells_of(scan)
    assert (distances_um(cells, smear[1]) < 4).all()
    assert sum(not c.refusal for c in cells) <= len(smear[1]) + 1
    for c in cells:
        assert c.nucleus_um2 > 0
        assert c.box.contains(c.centre)


def placed(cells: list[Cell]) -> list[tuple[float, float, bool, str]]:
    return sorted((c.centre.x, c.centre.y, c.edge, c.refusal) for c in cells)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(150, 1024), st.integers(0, 1023))
def test_moving_the_tile_grid_never_changes_the_cells(scan: Path, side: int, shift: int) -> None:
    reference, moved = placed(cells_of(scan)), placed(cells_of(scan, side, shift))
    assert len(reference) == len(moved)
    for a, b in zip(reference, moved, strict=True):
        assert a[2:] == b[2:]
        assert np.hypot(a[0] - b[0], a[1] - b[1]) * SCALE.um_per_px < 0.5


def test_cells_cut_by_the_border_are_edge(tmp_path: Path, smear: Smear) -> None:
    image, truth = smear
    cut = next(t for t in truth if 600 < t.centre.x < 2400 and 500 < t.centre.y < 1500)
    x, y = int(cut.centre.x), int(cut.centre.y)
    write_pyramid(tmp_path / "cut.tif", image[y:, x - 500 :], 0.0725)
    cells = cells_of(tmp_path / "cut.tif")
    half = [c for c in cells if c.centre.y * 0.0725 < 6 and abs(c.centre.x - 500) * 0.0725 < 6 and not c.refusal]
    assert half
    assert all(c.edge and not c.countable for c in half)
    assert any(not c.edge for c in cells)


@pytest.mark.parametrize("gain", [(1.0, 1.0, 1.0), (1.0, 0.9, 0.78), (0.75, 0.8, 0.85), (0.85, 0.92, 1.0)])
def test_white_balance_and_brightness_do_not_matter(smear: Smear, gain: tuple[float, float, float]) -> None:
    small = cv2.resize(smear[0], None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    image = np.clip(small * np.array(gain), 0, 255).astype(np.uint8)
    chosen = DetectSettings()
    detector = StainDetector(measure_stain(image.reshape(-1, 3)[::5], chosen), chosen)
    found = [b for b in detector.find(image, 0.29) if not b.refusal]
    assert abs(len(found) - len(smear[1])) <= 1


def test_touching_nuclei_are_split_and_lobes_are_not() -> None:
    """Two round nuclei of 9 um side by side are two cells; four lobes of 3 um close together are one."""
    image = np.full((300, 300, 3), (245, 240, 238), np.uint8)
    for x, y in [(20 + 26 * i, 30 + 30 * j) for i in range(11) for j in range(9)]:
        cv2.circle(image, (x, y), 12, (215, 175, 185), -1)
    nucleus = (90, 50, 140)
    cv2.rectangle(image, (60, 60), (240, 220), (245, 240, 238), -1)
    cv2.circle(image, (100, 110), 15, nucleus, -1)
    cv2.circle(image, (127, 110), 15, nucleus, -1)
    for dx, dy in ((0, 0), (9, 6), (18, 0), (9, -8)):
        cv2.circle(image, (180 + dx, 180 + dy), 6, nucleus, -1)
    chosen = DetectSettings()
    detector = StainDetector(measure_stain(image.reshape(-1, 3), chosen), chosen)
    found = [b for b in detector.find(image, 0.3) if not b.refusal]
    centres = sorted((round(b.centre.x), round(b.centre.y)) for b in found)
    assert len(centres) == 3
    assert np.allclose(centres, [(100, 110), (127, 110), (189, 179)], atol=4)


def test_small_bodies_are_refused_as_platelets_and_sheets_as_clumps() -> None:
    image = np.full((400, 400, 3), (245, 240, 238), np.uint8)
    for x, y in [(20 + 26 * i, 20 + 26 * j) for i in range(14) for j in range(6)]:
        cv2.circle(image, (x, y), 12, (215, 175, 185), -1)
    cv2.circle(image, (60, 220), 7, (90, 50, 140), -1)
    cv2.rectangle(image, (150, 250), (330, 360), (90, 50, 140), -1)
    chosen = DetectSettings()
    detector = StainDetector(measure_stain(image.reshape(-1, 3), chosen), chosen)
    found = {b.refusal for b in detector.find(image, 0.3)}
    assert found == {"too small (platelet or precipitate)", "too large (clump)"}


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (128, 128, 128), (200, 30, 30)])
def test_one_colour_holds_no_cells(colour: tuple[int, int, int]) -> None:
    image = np.full((200, 200, 3), colour, np.uint8)
    chosen = DetectSettings()
    assert StainDetector(measure_stain(image.reshape(-1, 3), chosen), chosen).find(image, 0.3) == []


def test_scan_of_another_scale(tmp_path: Path) -> None:
    image, truth = paint_smear(Size(2200, 1500), 0.1, leukocytes={"LYT": 4, "MYO": 4, "NGS": 4}, seed=5)
    write_pyramid(tmp_path / "a.tif", image, 0.1)
    cells = [c for c in cells_of(tmp_path / "a.tif", scale=Scale(0.1, "test")) if not c.refusal]
    for t in truth:
        assert min(np.hypot(c.centre.x - t.centre.x, c.centre.y - t.centre.y) for c in cells) * 0.1 < 4
    assert all(isinstance(c.centre, Point) for c in cells)
