from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from slidescreen.demo import PaintedCell, write_pyramid
from slidescreen.errors import ReadError
from slidescreen.geometry import Box, Size
from slidescreen.monolayer import MonolayerSettings, cut_tiles, map_area
from slidescreen.records import Area, AreaMap, Overview, RgbImage, Scale
from slidescreen.slide import Grid, open_slide

SCALE = Scale(0.0725, "test")
Smear = tuple[RgbImage, list[PaintedCell]]


def area_of(path: Path, **options: object) -> AreaMap:
    with open_slide(path) as slide:
        return map_area(slide, SCALE, MonolayerSettings(**options))  # type: ignore[arg-type]


def test_a_covered_smear_is_screened_whole(scan: Path) -> None:
    area = area_of(scan)
    assert area.area_mm2["scanned"] == pytest.approx(3072 * 2048 * 0.0725**2 * 1e-6, rel=1e-6)
    assert area.area_mm2["screened"] >= 0.99 * area.area_mm2["scanned"]
    assert area.overview.image.shape[:2] == area.overview.area.shape
    assert (area.overview.area == Area.SCREENED).mean() > 0.99


def test_empty_glass_is_left_out_unless_all_is_asked_for(empty_scan: Path) -> None:
    area = area_of(empty_scan)
    assert area.area_mm2["screened"] == 0
    assert area.area_mm2["empty"] == pytest.approx(area.area_mm2["scanned"])
    assert area_of(empty_scan, aoi="all").area_mm2["screened"] == pytest.approx(area.area_mm2["scanned"])


def test_half_glass_half_smear(tmp_path: Path, smear: Smear) -> None:
    image = smear[0].copy()
    image[:, 1536:] = 238
    write_pyramid(tmp_path / "half.tif", image, 0.0725)
    area = area_of(tmp_path / "half.tif")
    share = area.area_mm2["screened"] / area.area_mm2["scanned"]
    assert 0.5 <= share <= 0.5 + 2 * area.block_px / 3072  # the block on the border and its neighbour are screened too
    assert area.screened(700, 1000)
    assert not area.screened(2500, 1000)
    assert not area.screened(-1, 10)


def test_transparent_area_is_unscanned_and_no_part_of_the_scanned(tmp_path: Path, smear: Smear) -> None:
    rgba = np.dstack([smear[0], np.full(smear[0].shape[:2], 255, np.uint8)])
    rgba[:, :1024] = 0
    path = tmp_path / "rgba.tif"
    tifffile.imwrite(path, rgba, tile=(256, 256), photometric="rgb", extrasamples=["unassalpha"])
    area = area_of(path)
    whole = 3072 * 2048 * 0.0725**2 * 1e-6
    assert area.area_mm2["unscanned"] == pytest.approx(whole / 3, rel=0.01)
    assert area.area_mm2["scanned"] == pytest.approx(2 * whole / 3, rel=0.01)
    assert not area.screened(500, 500)


@pytest.mark.parametrize("value", [0, 255])
def test_fill_colours_are_unscanned(tmp_path: Path, smear: Smear, value: int) -> None:
    image = smear[0].copy()
    image[:1024] = value
    path = tmp_path / "fill.tif"
    tifffile.imwrite(path, image, tile=(256, 256), photometric="rgb")
    area = area_of(path)
    share = area.area_mm2["unscanned"] / (area.area_mm2["unscanned"] + area.area_mm2["scanned"])
    assert 0.5 - area.block_px / 2048 <= share <= 0.5


def damage(path: Path, share: float) -> None:
    with tifffile.TiffFile(path) as tiff:
        pages = [page for level in tiff.series for page in [level.keyframe]] + [p for p in tiff.pages]
        spans = {(o, n) for page in pages for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)}
    with path.open("r+b") as file:
        for offset, length in sorted(spans)[: int(share * len(spans))]:
            file.seek(offset)
            file.write(b"\0" * length)


def test_unreadable_area_is_told_or_fails(tmp_path: Path, smear: Smear) -> None:
    path = tmp_path / "damaged.tif"
    tifffile.imwrite(path, smear[0], tile=(256, 256), photometric="rgb", compression="jpeg")
    damage(path, 0.04)
    area = area_of(path)
    assert area.area_mm2["unreadable"] == pytest.approx(3 * 256 * 256 * 0.0725**2 * 1e-6, rel=0.02)
    assert (area.overview.area == Area.UNREADABLE).sum() == pytest.approx(3 * (256 / area.overview.downsample) ** 2, rel=0.05)
    damage(path, 0.5)
    with pytest.raises(ReadError, match="50 % of the scan cannot be decoded"):
        area_of(path)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 900), st.integers(1, 700), st.integers(64, 400), st.integers(0, 500), st.floats(1, 60))
def test_tile_cores_cover_the_grid_once(width: int, height: int, side: int, shift: int, halo: float) -> None:
    grid = Grid(0, 1, Size(width, height), 1.0)
    blocks = np.full((8, 10), Area.SCREENED, np.uint8)
    overview = Overview(np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8), 1.0)
    area = AreaMap(blocks, 100.0, {}, overview)
    covered = np.zeros((height, width), int)
    for tile in cut_tiles(grid, area, halo, Scale(1.0, "test"), side=side, shift=shift):
        covered[tile.core.y : tile.core.bottom, tile.core.x : tile.core.right] += 1
        assert tile.window == tile.core.expanded(int(np.ceil(halo))).intersect(Box(0, 0, width, height))
    assert (covered == 1).all()


def test_tiles_without_screened_blocks_are_left_out() -> None:
    blocks = np.full((10, 10), Area.EMPTY, np.uint8)
    blocks[7, 8] = Area.SCREENED
    overview = Overview(np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8), 1.0)
    tiles = list(cut_tiles(Grid(0, 1, Size(1000, 1000), 1.0), AreaMap(blocks, 100.0, {}, overview), 10, SCALE, side=100))
    assert [tile.core for tile in tiles] == [Box(800, 700, 100, 100)]
