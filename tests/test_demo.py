"""The painted demo smear: repeatable, true to its list of cells, and written as a scan that OpenSlide opens."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import openslide
import pytest

from slidescreen.demo import DEFAULT_LEUKOCYTES, PaintedCell, paint_smear, write_demo, write_pyramid
from slidescreen.errors import OutputError
from slidescreen.geometry import Box, Size
from slidescreen.painting import PAINTABLE
from slidescreen.records import RgbImage
from slidescreen.taxonomy import CODES

SIZE = Size(1024, 768)
ALL_CLASSES = dict.fromkeys(PAINTABLE, 1)


@pytest.fixture(scope="module")
def smear() -> tuple[RgbImage, list[PaintedCell]]:
    return paint_smear(SIZE, leukocytes=ALL_CLASSES, seed=3)


def test_same_seed_paints_the_same_smear(smear: tuple[RgbImage, list[PaintedCell]]) -> None:
    image, cells = smear
    again, cells_again = paint_smear(SIZE, leukocytes=ALL_CLASSES, seed=3)
    assert np.array_equal(image, again)
    assert cells == cells_again


def test_another_seed_paints_another_smear() -> None:
    first, _ = paint_smear(Size(300, 300), leukocytes={"LYT": 1}, seed=0)
    second, _ = paint_smear(Size(300, 300), leukocytes={"LYT": 1}, seed=1)
    assert not np.array_equal(first, second)


def test_classes_are_codes_of_the_taxonomy() -> None:
    assert set(DEFAULT_LEUKOCYTES) <= set(PAINTABLE) <= set(CODES)


def test_truth_lists_every_leukocyte_inside_the_image(smear: tuple[RgbImage, list[PaintedCell]]) -> None:
    image, cells = smear
    assert image.shape == (SIZE.height, SIZE.width, 3)
    assert image.dtype == np.uint8
    assert [c.label for c in cells] == list(ALL_CLASSES)
    whole = Box(0, 0, SIZE.width, SIZE.height)
    for cell in cells:
        assert cell.box.intersect(whole) == cell.box
        assert cell.centre == cell.box.centre
        assert 7 < cell.box.width * 0.0725 < 22


def test_leukocytes_do_not_overlap() -> None:
    _, cells = paint_smear(Size(1500, 1500), leukocytes={"NGS": 8, "MON": 4, "LYT": 8}, seed=5)
    for a, b in itertools.combinations(cells, 2):
        common = a.box.intersect(b.box)
        assert common.width * common.height == 0


@pytest.mark.parametrize("label", ["LYT", "MYO"])
def test_nucleus_is_dark_and_red_cells_keep_off(label: str) -> None:
    image, cells = paint_smear(Size(700, 700), leukocytes={label: 3}, seed=2)
    for cell in cells:
        x, y = round(cell.centre.x), round(cell.centre.y)
        nucleus = image[y - 15 : y + 15, x - 15 : x + 15].mean(axis=(0, 1))
        assert nucleus[1] < 60 < np.median(image[..., 1])  # green: where the nuclear stain absorbs most
        assert nucleus[2] > nucleus[0] > nucleus[1]  # purple


def test_glass_is_near_white_and_red_cells_cover_a_part(smear: tuple[RgbImage, list[PaintedCell]]) -> None:
    green = smear[0][..., 1]
    assert np.percentile(green, 95) > 225
    assert 0.25 < np.mean((green > 120) & (green < 215)) < 0.75


@pytest.mark.parametrize("um_per_px", [0.05, 0.25, 0.5])
def test_cells_keep_their_size_in_um_at_any_scale(um_per_px: float) -> None:
    size = Size(round(60 / um_per_px), round(60 / um_per_px))
    _, cells = paint_smear(size, um_per_px, leukocytes={"MYO": 2}, seed=1)
    assert all(9 < cell.box.width * um_per_px < 18 for cell in cells)


def test_cells_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        paint_smear(Size(512, 512), leukocytes={"NGS": 30})
    with pytest.raises(ValueError, match="do not fit"):
        paint_smear(Size(64, 64), leukocytes={"MON": 1})


@pytest.mark.parametrize("leukocytes", [{"XYZ": 1}, {"LYT": -1}])
def test_unknown_classes_and_negative_counts_are_refused(leukocytes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="count of 0 or more"):
        paint_smear(SIZE, leukocytes=leukocytes)


@pytest.mark.parametrize("um_per_px", [0.0, 0.04, 0.6, float("nan")])
def test_implausible_scale_is_refused(um_per_px: float) -> None:
    with pytest.raises(ValueError, match="um/px"):
        paint_smear(SIZE, um_per_px, leukocytes={})


def test_openslide_opens_the_pyramid(tmp_path: Path) -> None:
    path = tmp_path / "smear.tif"
    write_pyramid(path, np.full((1500, 2100, 3), 200, np.uint8), 0.0725)
    with openslide.OpenSlide(path) as slide:
        assert slide.level_dimensions == ((2100, 1500), (1050, 750), (525, 375))
        assert float(slide.properties[openslide.PROPERTY_NAME_MPP_X]) == pytest.approx(0.0725, rel=1e-6)
        assert float(slide.properties[openslide.PROPERTY_NAME_MPP_Y]) == pytest.approx(0.0725, rel=1e-6)
    assert list(tmp_path.iterdir()) == [path]


def test_pyramid_keeps_the_pixels(tmp_path: Path, smear: tuple[RgbImage, list[PaintedCell]]) -> None:
    image, _ = smear
    path = tmp_path / "smear.tif"
    write_pyramid(path, image, 0.0725, levels=2)
    with openslide.OpenSlide(path) as slide:
        assert slide.level_count == 2
        full = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"), np.float32)
        half = np.asarray(slide.read_region((0, 0), 1, slide.level_dimensions[1]).convert("RGB"), np.float32)
    means = image.reshape(SIZE.height // 2, 2, SIZE.width // 2, 2, 3).mean(axis=(1, 3))
    for read, painted in ((full, image), (half, means)):
        assert np.abs(read - painted).mean() < 2.5
        assert np.abs((read - painted).mean(axis=(0, 1))).max() < 0.8  # no shift of colour


def test_no_scale_leaves_the_resolution_out(tmp_path: Path) -> None:
    path = tmp_path / "smear.tif"
    write_pyramid(path, np.full((300, 400, 3), 200, np.uint8), None)
    with openslide.OpenSlide(path) as slide:
        assert openslide.PROPERTY_NAME_MPP_X not in slide.properties
        assert slide.level_count == 1


def test_a_pyramid_has_a_level(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        write_pyramid(tmp_path / "smear.tif", np.zeros((10, 10, 3), np.uint8), None, levels=0)


def test_nothing_is_left_where_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder.tif").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        write_pyramid(tmp_path / "folder.tif", np.zeros((10, 10, 3), np.uint8), None)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.tif"]


def test_demo_writes_scan_and_truth(tmp_path: Path) -> None:
    path = tmp_path / "demo.tif"
    cells = write_demo(path, Size(3000, 2400), seed=4)
    truth = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert (truth["um_per_px"], truth["width"], truth["height"]) == (0.0725, 3000, 2400)
    assert [c["label"] for c in truth["cells"]] == [c.label for c in cells]
    assert len(cells) == sum(DEFAULT_LEUKOCYTES.values())
    first, box = truth["cells"][0], cells[0].box
    assert [first[k] for k in ("xmin", "ymin", "xmax", "ymax")] == [box.x, box.y, box.right, box.bottom]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demo.json", "demo.tif"]


def test_folders_are_made_and_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    image = np.full((64, 64, 3), 200, np.uint8)
    write_pyramid(tmp_path / "new" / "deep" / "a.tif", image, 0.1)
    assert (tmp_path / "new" / "deep" / "a.tif").is_file()
    with pytest.raises(OutputError, match="cannot be made"):
        write_pyramid(tmp_path / "new" / "deep" / "a.tif" / "b.tif", image, 0.1)
