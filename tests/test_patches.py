from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from slidescreen.demo import PaintedCell, write_pyramid
from slidescreen.geometry import Box, Point
from slidescreen.patches import cut_patches, patch_level, patch_of_image, resample
from slidescreen.records import Cell, RgbImage, Scale
from slidescreen.slide import open_slide

Smear = tuple[RgbImage, list[PaintedCell]]


def cell_at(x: float, y: float) -> Cell:
    return Cell(Point(x, y), Box.around(Point(x, y), 100), 50.0)


def test_at_native_scale_pixels_are_copied(scan: Path) -> None:
    with open_slide(scan) as slide:
        (patch,) = cut_patches(slide, [cell_at(1000.4, 900.6)], Scale(0.0725, "test"))
        assert patch.pixels.shape == (400, 400, 3)
        assert np.array_equal(patch.pixels, slide.read_region(Box(800, 701, 400, 400)))


def test_white_beyond_the_scan(scan: Path) -> None:
    with open_slide(scan) as slide:
        (patch,) = cut_patches(slide, [cell_at(0, 0)], Scale(0.0725, "test"))
    assert (patch.pixels[:200] == 255).all()
    assert (patch.pixels[:, :200] == 255).all()
    assert (patch.pixels[200:, 200:] != 255).any()


@pytest.mark.parametrize("um_per_px", [0.05, 0.1, 0.25])
def test_other_scales_are_resampled_to_29_um(tmp_path: Path, smear: Smear, um_per_px: float) -> None:
    factor = 0.0725 / um_per_px
    image = cv2.resize(smear[0], None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    write_pyramid(tmp_path / "a.tif", np.asarray(image, np.uint8), um_per_px, quality=97)
    truth = next(t.centre for t in smear[1] if 250 < t.centre.x < 2800 and 250 < t.centre.y < 1700)
    with open_slide(tmp_path / "a.tif") as slide:
        (patch,) = cut_patches(slide, [cell_at(truth.x * factor, truth.y * factor)], Scale(um_per_px, "test"))
    box = Box.around(truth, 400)
    expected = smear[0][box.y : box.bottom, box.x : box.right]
    blurred = [cv2.GaussianBlur(p, (0, 0), 4) for p in (patch.pixels, expected)]
    assert np.abs(blurred[0].astype(float) - blurred[1]).mean() < 3


def test_the_best_level_is_chosen(tmp_path: Path, smear: Smear) -> None:
    write_pyramid(tmp_path / "a.tif", smear[0], 0.0181)
    with open_slide(tmp_path / "a.tif") as slide:
        assert [patch_level(slide, Scale(um, "test")) for um in (0.0725, 0.1, 0.036, 0.03625)] == [0, 0, 1, 1]


def test_neighbours_share_decoded_blocks(scan: Path) -> None:
    cells = [cell_at(600 + 30 * i, 700) for i in range(20)]
    with open_slide(scan) as slide:
        assert len(list(cut_patches(slide, cells, Scale(0.0725, "test")))) == 20
        assert slide.blocks_decoded == len({(x // 256, y // 256) for x in range(400, 1370) for y in (500, 600, 700, 899)})


def test_lost_pixels_in_the_cell_refuse_it_beside_it_do_not(tmp_path: Path, smear: Smear) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, smear[0], tile=(256, 256), photometric="rgb", compression="jpeg")
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        index = 2 * 12 + 3  # row 2, column 3
        offset, length = page.dataoffsets[index], page.databytecounts[index]  # type: ignore[union-attr]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\0" * length)
    with open_slide(path) as slide:
        cells = [cell_at(3.5 * 256, 2.5 * 256), cell_at(4 * 256 + 100, 2.5 * 256), cell_at(2000, 1500)]
        patches = list(cut_patches(slide, cells, Scale(0.0725, "test")))
    assert [p.cell.refusal for p in patches] == ["unreadable pixels", "", ""]


def test_the_centre_of_a_cell_image() -> None:
    image = np.zeros((360, 362, 3), np.uint8)
    image[35:325, 36:326] = 200
    assert (patch_of_image(image, 0.1) == 200).all()
    small = patch_of_image(np.zeros((100, 100, 3), np.uint8), 0.0725)
    assert (small[:150] == 255).all()
    assert (small[151:249, 151:249] == 0).all()


def test_resampling_keeps_the_mean() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (800, 800, 3)).astype(np.uint8)
    assert resample(noise).mean() == pytest.approx(noise.mean(), abs=1)
    assert resample(noise[:400, :400]) is not None
    assert np.array_equal(resample(noise[:400, :400]), noise[:400, :400])
