"""The scan sorted into areas: painted classes come out where they were painted, and no leukocyte-rich area is thrown away."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from smears import GROUND, UM_PER_PX, GradedSmear, feathered, graded_smear, monolayer, thick, write_rgba

from slidescreen.demo import paint_smear
from slidescreen.errors import AuditError, ReadError, UsageError
from slidescreen.geometry import Box, Size
from slidescreen.monolayer import MonolayerSettings, check_areas, map_area, with_aoi
from slidescreen.monolayer.aoi import blocks_in, within
from slidescreen.monolayer.blocks import SUMS
from slidescreen.monolayer.classes import classify_blocks, edge_blur_um
from slidescreen.records import Area, AreaMap, Scale
from slidescreen.slide import open_slide

AUTO = MonolayerSettings()


def mapped(path: Path, settings: MonolayerSettings = AUTO, um_per_px: float = UM_PER_PX) -> AreaMap:
    with open_slide(path) as slide:
        return map_area(slide, Scale(um_per_px, "test"), settings)


def map_of(tmp_path: Path, pixels: NDArray[np.uint8], settings: MonolayerSettings = AUTO) -> AreaMap:
    write_rgba(tmp_path / "scan.tif", pixels, UM_PER_PX)
    return mapped(tmp_path / "scan.tif", settings)


def blocks_within(area: AreaMap, box: Box) -> NDArray[np.uint8]:
    side = area.block_px
    rows, columns = (slice(-int(-a // side), int(b // side)) for a, b in ((box.y, box.bottom), (box.x, box.right)))
    return area.blocks[rows, columns]


@pytest.fixture(scope="module")
def smear() -> GradedSmear:
    return graded_smear()


@pytest.fixture(scope="module")
def scan(smear: GradedSmear, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graded") / "graded.tif"
    write_rgba(path, smear.pixels, UM_PER_PX)
    return path


@pytest.fixture(scope="module")
def graded(scan: Path) -> AreaMap:
    return mapped(scan)


@pytest.mark.parametrize("kind", [k for k in Area if k not in (Area.EMPTY, Area.UNREADABLE)], ids=lambda k: k.key)
def test_classes_come_out_where_they_were_painted(graded: AreaMap, smear: GradedSmear, kind: Area) -> None:
    blocks = blocks_within(graded, smear.areas[kind])
    assert blocks.size
    assert (blocks == kind).mean() >= 0.95


def test_areas_add_up_and_only_the_monolayer_is_screened(graded: AreaMap, smear: GradedSmear) -> None:
    mm2 = graded.area_mm2
    assert set(mm2) == {k.key for k in Area} | {"scanned", "screened", "not_screened"}
    frame = smear.pixels.shape[0] * smear.pixels.shape[1] * UM_PER_PX**2 * 1e-6
    assert mm2["scanned"] + mm2["unscanned"] == pytest.approx(frame, rel=1e-6)
    assert mm2["unscanned"] == pytest.approx(700 * 700 * UM_PER_PX**2 * 1e-6, rel=0.02)
    assert mm2["screened"] == mm2["monolayer"]
    assert mm2["screened"] + mm2["not_screened"] == pytest.approx(mm2["scanned"])
    assert (graded.screened_blocks == (graded.blocks == Area.MONOLAYER)).all()


def test_sums_that_do_not_agree_are_named(graded: AreaMap) -> None:
    with pytest.raises(AuditError, match="area classes add up"):
        check_areas({**graded.area_mm2, "ink": 5.0})
    with pytest.raises(AuditError, match="screened and not screened"):
        check_areas({**graded.area_mm2, "screened": 5.0})


def test_all_screens_everything_scanned_and_keeps_the_classes(scan: Path, graded: AreaMap) -> None:
    area = mapped(scan, with_aoi(AUTO, "all"))
    assert (area.blocks == graded.blocks).all()
    assert area.area_mm2["screened"] == area.area_mm2["scanned"]


def test_chosen_rectangle_is_screened_whatever_its_class(scan: Path, graded: AreaMap) -> None:
    area = mapped(scan, with_aoi(AUTO, "0,0,1280,1280"))
    assert (area.blocks == graded.blocks).all()
    assert area.area_mm2["screened"] == pytest.approx(1280 * 1280 * UM_PER_PX**2 * 1e-6, rel=0.25)
    assert area.screened(600, 600)
    assert not area.screened(2000, 600)
    assert area.screened(1279, 1279)
    assert not area.screened(1281, 600)  # in the same block, beyond the area


@pytest.mark.parametrize("text", ["-100,-100,50,50", "1000000,0,10,10"])
def test_an_area_outside_the_scan_fails_by_name(scan: Path, text: str) -> None:
    with pytest.raises(ReadError, match="the chosen area lies outside the scan"):
        mapped(scan, with_aoi(AUTO, text))


def test_overview_has_classes_and_screened_area(graded: AreaMap) -> None:
    view = graded.overview
    assert view.image.shape[:2] == view.area.shape == view.screened.shape
    assert set(np.unique(view.area)) >= {Area.UNSCANNED, Area.TOO_THIN, Area.MONOLAYER, Area.TOO_THICK, Area.OUT_OF_FOCUS}
    assert not (view.screened & (view.area != Area.MONOLAYER)).any()


def test_painted_monolayer_is_screened_as_a_whole(tmp_path: Path) -> None:
    area = map_of(tmp_path, monolayer(1600, 1200, 5, leukocytes=8))
    assert area.area_mm2["screened"] >= 0.99 * area.area_mm2["scanned"]


@cache
def crowd() -> NDArray[np.uint8]:
    """300 x 225 um with as many blasts as lie side by side."""
    return paint_smear(Size(1200, 900), UM_PER_PX, leukocytes={"MYO": 120}, seed=3)[0]


@pytest.mark.parametrize("layers", [1, 3])
def test_sheets_of_blasts_are_never_thrown_away(tmp_path: Path, layers: int) -> None:
    area = map_of(tmp_path, thick([np.roll(crowd(), (i * 211, i * 331), (0, 1)) for i in range(layers)]))
    assert area.area_mm2["screened"] >= 0.99 * area.area_mm2["scanned"]


def test_blasts_among_few_red_cells_are_screened(tmp_path: Path) -> None:
    few = feathered(1200, 900, 1, per_mm2=100)
    cells = paint_smear(Size(1200, 900), UM_PER_PX, leukocytes={"MYO": 25}, seed=3)[1]
    sheet = crowd()
    for cell in cells[:12]:
        b = cell.box
        few[b.y : b.bottom, b.x : b.right] = sheet[: b.height, : b.width]
        cv2.circle(few, (round(b.centre.x), round(b.centre.y)), b.width // 2, (110, 60, 150), -1)
    area = map_of(tmp_path, few)
    for cell in cells[:12]:
        assert area.screened(cell.box.centre.x, cell.box.centre.y)


@pytest.mark.parametrize(("sigma_um", "usable"), [(0.0, True), (0.5, True), (1.6, False), (2.0, False)])
def test_soft_is_usable_and_blurred_is_not(tmp_path: Path, sigma_um: float, usable: bool) -> None:
    image = monolayer(1200, 900, 6)
    if sigma_um:
        image = cv2.GaussianBlur(image, (0, 0), sigma_um / UM_PER_PX)
    area = map_of(tmp_path, image)
    kind = Area.MONOLAYER if usable else Area.OUT_OF_FOCUS
    assert (area.blocks == kind).mean() > 0.95


def test_edge_blur_is_measured_in_um() -> None:
    assert edge_blur_um(np.float32([2.0]), np.float32([2.0 / np.sqrt(2)]), 1.0)[0] == pytest.approx(1.0, rel=0.01)
    assert edge_blur_um(np.float32([0.0]), np.float32([0.0]), 1.0)[0] == 0


def test_nothing_at_all_is_unscanned() -> None:
    assert (classify_blocks(np.zeros((len(SUMS), 2, 3), np.float32), 1.0) == Area.UNREADABLE).all()


@pytest.mark.parametrize(("value", "kind"), [(0, Area.UNSCANNED), (255, Area.UNSCANNED), (128, Area.EMPTY)])
def test_scans_of_one_colour_hold_nothing_to_screen(tmp_path: Path, value: int, kind: Area) -> None:
    area = map_of(tmp_path, np.full((700, 900, 3), value, np.uint8))
    assert (area.blocks == kind).all()
    assert area.area_mm2["screened"] == 0


def test_ink_alone_is_ink(tmp_path: Path) -> None:
    image = np.full((1200, 1200, 3), GROUND, np.float32).astype(np.uint8)
    cv2.circle(image, (600, 600), 350, (30, 30, 30), -1)
    area = map_of(tmp_path, image)
    assert area.area_mm2["screened"] == 0
    assert area.area_mm2["ink"] > 0.8 * np.pi * (350 * UM_PER_PX * 1e-3) ** 2


def test_one_px_wide_scan(tmp_path: Path) -> None:
    area = map_of(tmp_path, np.full((3000, 1, 3), 200, np.uint8))
    assert area.area_mm2["screened"] == 0


def square(x: float, y: float, side: float) -> list[list[float]]:
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def test_geojson_with_hole(tmp_path: Path) -> None:
    path = tmp_path / "aoi.geojson"
    shape = {"type": "Polygon", "coordinates": [square(0, 0, 800), square(200, 200, 400)]}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": shape}]}))
    settings = with_aoi(AUTO, str(path))
    inside = blocks_in(settings.polygons, (10, 10), 100.0)
    assert inside[0, 0]
    holds = within(settings.polygons)
    assert holds(100, 100)
    assert holds(0, 100)
    assert not holds(400, 400)
    assert not holds(801, 100)
    assert not inside[4, 4]
    assert not inside[9, 9]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not valid JSON"),
        ('{"type": "FeatureCollection"}', "not valid GeoJSON"),
        ('{"type": "FeatureCollection", "features": []}', "holds no polygon"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}', "three or more points"),
        ("[1]", "not valid GeoJSON"),
    ],
)
def test_geojson_that_is_no_area_is_refused_in_one_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "aoi.geojson"
    path.write_text(content)
    with pytest.raises(UsageError, match=said) as caught:
        with_aoi(AUTO, str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,x", "0,0,0,5", "0,0,-1,5", "0,0,nan,5", "everything", "no/such.geojson"])
def test_areas_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--aoi"):
        with_aoi(AUTO, text)


def test_choosing_auto_again_forgets_the_area() -> None:
    chosen = with_aoi(AUTO, "0,0,10,10")
    assert chosen == replace(AUTO, aoi="0,0,10,10", polygons=((((0, 0), (10, 0), (10, 10), (0, 10)),),))
    assert with_aoi(chosen, "auto") == AUTO
