"""One contract for every reader; what is transparent, unreadable, beyond the border; threads, forks, caches."""

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from slidescreen.errors import OpenError
from slidescreen.geometry import Box
from slidescreen.slide import PixelState, Slide, choose_grid, fingerprint, open_slide, read_grid, read_image
from slidescreen.slide.guards import tiff_fault
from slidescreen.slide.readers import OpenSlideReader, TifffileReader, TiffSlideReader, TiledTiffReader

TIFF_READERS = (TiledTiffReader, OpenSlideReader, TifffileReader, TiffSlideReader)

RNG = np.random.default_rng(5)
IMAGE: NDArray[np.uint8] = np.repeat(np.repeat(RNG.integers(0, 256, (75, 101, 3), np.uint8), 9, 0), 8, 1)
"""(675, 808, 3): sides that are no multiple of a tile."""


def write_tiled(path: Path, image: NDArray[np.uint8] = IMAGE, **options: object) -> Path:
    tifffile.imwrite(
        path, image, tile=(128, 128), photometric="rgb", resolution=(1e4 / 0.1, 1e4 / 0.1), resolutionunit=3, **options
    )
    return path


def write_pyramid_subifd(path: Path) -> Path:
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        meta = {"axes": "YXS", "PhysicalSizeX": 100, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 100, "PhysicalSizeYUnit": "nm"}
        tiff.write(IMAGE, tile=(128, 128), photometric="rgb", subifds=1, metadata=meta)
        tiff.write(IMAGE[::2, ::2], tile=(128, 128), photometric="rgb", subfiletype=1)
    return path


@pytest.mark.parametrize("reader", TIFF_READERS, ids=lambda r: r.name)
def test_contract_of_each_reader(tmp_path: Path, reader: type) -> None:
    with open_slide(write_tiled(tmp_path / "a.tif"), [reader]) as slide:
        assert (slide.size.width, slide.size.height) == (808, 675)
        assert slide.reader == reader.name  # type: ignore[attr-defined]
        assert slide.stated_scale is not None
        assert slide.stated_scale.x == pytest.approx(0.1, rel=1e-4)
        assert "Resolution" in slide.stated_scale.source
        for box in (Box(0, 0, 808, 675), Box(100, 90, 300, 200), Box(700, 600, 108, 75), Box(5, 6, 1, 1)):
            region = slide.read_region(box)
            assert region.dtype == np.uint8
            assert np.array_equal(region, IMAGE[box.y : box.bottom, box.x : box.right])
        outside = slide.read_pixels(Box(-10, -20, 30, 40))
        assert (outside.rgb[:20] == 255).all()
        assert (outside.state[:20] == PixelState.UNSCANNED).all()
        assert np.array_equal(outside.rgb[20:, 10:], IMAGE[:20, :20])
        assert (slide.read_region(Box(5000, 5000, 4, 4)) == 255).all()


def test_plain_images_are_read_and_have_no_scale(tmp_path: Path) -> None:
    path = tmp_path / "field.png"
    Image.fromarray(IMAGE).save(path)
    with open_slide(path) as slide:
        assert (slide.reader, slide.stated_scale) == ("pillow", None)
        assert np.array_equal(slide.read_region(Box(10, 20, 500, 400)), IMAGE[20:420, 10:510])


@pytest.mark.parametrize("rows", [16, 675])
def test_striped_flat_tiff(tmp_path: Path, rows: int) -> None:
    path = tmp_path / "strips.tif"
    tifffile.imwrite(path, IMAGE, photometric="rgb", rowsperstrip=rows, resolution=(254000, 254000), resolutionunit=2)
    with open_slide(path) as slide:
        assert slide.reader != "openslide"
        assert slide.stated_scale is not None
        assert slide.stated_scale.x == pytest.approx(0.1, rel=1e-4)
        assert np.array_equal(slide.read_region(Box(33, 44, 555, 444)), IMAGE[44:488, 33:588])


@pytest.mark.parametrize("reader", [TiledTiffReader, TifffileReader], ids=lambda r: r.name)
def test_pyramid_in_subifds_is_seen(tmp_path: Path, reader: type) -> None:
    path = write_pyramid_subifd(tmp_path / "a.ome.tif")
    with open_slide(path) as best, open_slide(path, [reader]) as slide:
        assert len(best.levels) == len(slide.levels) == 2
        assert best.stated_scale is not None
        assert best.stated_scale.x == pytest.approx(0.1)
        assert best.stated_scale.source == "OME-XML PhysicalSizeX"
        assert np.array_equal(slide.read_region(Box(30, 40, 100, 90), 1), IMAGE[::2, ::2][40:130, 30:130])


def test_transparent_is_white_and_unscanned(tmp_path: Path) -> None:
    rgba = np.dstack([IMAGE, np.full(IMAGE.shape[:2], 255, np.uint8)])
    rgba[:200, :300] = 0
    rgba[300:310, 300:310, 3] = 128
    path = tmp_path / "rgba.tif"
    tifffile.imwrite(path, rgba, tile=(128, 128), photometric="rgb", extrasamples=["unassalpha"])
    with open_slide(path, [TifffileReader]) as slide:
        pixels = slide.read_pixels(Box(0, 0, 808, 675))
    assert (pixels.rgb[:200, :300] == 255).all()
    assert (pixels.state[:200, :300] == PixelState.UNSCANNED).all()
    assert (pixels.state[200:] == PixelState.SCANNED).all()
    expected = (IMAGE[300:310, 300:310].astype(int) * 128 + 255 * 127) / 255
    assert np.abs(pixels.rgb[300:310, 300:310] - expected).max() <= 1


@pytest.mark.parametrize("reader", TIFF_READERS, ids=lambda r: r.name)
def test_damaged_tile_is_unreadable_and_the_rest_is_read(tmp_path: Path, reader: type) -> None:
    path = write_tiled(tmp_path / "a.tif", compression="jpeg", compressionargs={"level": 95})
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        offset, length = page.dataoffsets[8], page.databytecounts[8]  # type: ignore[union-attr]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\0" * length)
    with open_slide(path, [reader]) as slide:
        pixels = slide.read_pixels(Box(0, 0, 808, 675))
        assert slide.unreadable_blocks == {(0, 1, 1)}
        assert (pixels.state[128:256, 128:256] == PixelState.UNREADABLE).all()
        assert (pixels.state == PixelState.UNREADABLE).sum() == 128 * 128
        assert np.abs(pixels.rgb[256:, :].astype(int) - IMAGE[256:, :]).mean() < 40


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 3000), st.integers(0, 2000), st.integers(1, 700), st.integers(1, 700), st.integers(0, 1))
def test_a_pixel_does_not_depend_on_the_region(scan: Path, x: int, y: int, w: int, h: int, level: int) -> None:
    with open_slide(scan) as slide:
        size = slide.levels[level].size
        whole = slide.read_region(Box(0, 0, size.width, size.height), level)
        with open_slide(scan) as fresh:
            part = fresh.read_pixels(Box(x, y, w, h), level)
    inside = whole[y : y + h, x : x + w]
    assert np.array_equal(part.rgb[: inside.shape[0], : inside.shape[1]], inside)


def test_a_block_is_decoded_once(scan: Path) -> None:
    with open_slide(scan) as slide:
        for x in range(0, 1000, 50):
            slide.read_region(Box(x, 100, 400, 400))
        assert slide.blocks_decoded == len({(x // 256, y // 256) for x in range(1350) for y in range(100, 500)})


def test_threads_have_their_own_handles(scan: Path) -> None:
    with open_slide(scan) as slide:
        expected = slide.read_region(Box(0, 0, 900, 900))
        slide._cache.clear()
        results: list[NDArray[np.uint8]] = []
        threads = [threading.Thread(target=lambda: results.append(slide.read_region(Box(0, 0, 900, 900)))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 4
        assert all(np.array_equal(r, expected) for r in results)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_opens_its_own_handle(scan: Path) -> None:
    with open_slide(scan) as slide:
        parent = id(slide._handle())
        read, write = os.pipe()
        child = os.fork()
        if child == 0:  # pragma: no cover - runs in the child
            slide._cache.clear()
            same = id(slide._handle()) == parent
            total = int(slide.read_region(Box(0, 0, 64, 64)).sum())
            os.write(write, f"{same} {total}".encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(read, 100).decode() == f"False {int(slide.read_region(Box(0, 0, 64, 64)).sum())}"


def test_fingerprint_follows_content_not_path(tmp_path: Path, scan: Path) -> None:
    copy = tmp_path / "other name.tif"
    shutil.copy(scan, copy)
    assert fingerprint(copy) == fingerprint(scan)
    with copy.open("r+b") as file:
        file.seek(copy.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    assert fingerprint(copy) != fingerprint(scan)


def test_input_files_are_left_untouched(scan: Path) -> None:
    before = (scan.read_bytes(), scan.stat().st_mtime_ns)
    with open_slide(scan) as slide:
        slide.read_region(Box(0, 0, 500, 500))
    assert before == (scan.read_bytes(), scan.stat().st_mtime_ns)


@pytest.mark.parametrize("factor", [2, 3, 7])
def test_grid_averages_whole_blocks(tmp_path: Path, factor: int) -> None:
    with open_slide(write_tiled(tmp_path / "a.tif")) as slide:
        grid = choose_grid(slide, factor)
        assert (grid.level, grid.factor, grid.downsample) == (0, factor, factor)
        pixels = read_grid(slide, grid, Box(3, 5, 40, 30))
        source = IMAGE[5 * factor : 35 * factor, 3 * factor : 43 * factor].astype(float)
        mean = source.reshape(30, factor, 40, factor, 3).mean((1, 3))
        assert np.abs(pixels.rgb - mean).max() <= 1
        last = read_grid(slide, grid, Box(grid.size.width - 1, grid.size.height - 1, 1, 1))
        assert (last.state == PixelState.SCANNED).all()


def bad_files(folder: Path) -> dict[str, Path]:
    paths = {name: folder / f"{name}.tif" for name in ("empty", "text", "truncated", "zeros")}
    paths["empty"].touch()
    paths["text"].write_text("this is no image")
    paths["zeros"].write_bytes(bytes(5000))
    whole = write_tiled(folder / "whole.tif").read_bytes()
    paths["truncated"].write_bytes(whole[: len(whole) // 3])
    paths["missing"] = folder / "missing.tif"
    paths["folder"] = folder
    return paths


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "zeros", "missing", "folder"])
def test_what_is_no_scan_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    path = bad_files(tmp_path)[kind]
    try:
        slide = open_slide(path)
    except OpenError as error:
        assert "\n" not in str(error)
        assert str(path) in str(error)
        return
    with slide:  # a TIFF whose directory comes first opens; its lost tiles are unreadable, not white glass
        assert kind == "truncated"
        assert (slide.read_pixels(Box(0, 0, 808, 675)).state == PixelState.UNREADABLE).mean() > 0.3


def test_gray_and_16_bit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.tif"
    tifffile.imwrite(path, IMAGE.astype(np.uint16) * 200, photometric="rgb", rowsperstrip=16)
    with pytest.raises(OpenError, match="not an 8-bit RGB image"):
        open_slide(path)


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("kind", ["cmyk", "gray", "deep"])
def test_what_is_not_8_bit_rgb_is_refused_by_every_reader(tmp_path: Path, kind: str, tiled: bool) -> None:
    path = tmp_path / "a.tif"
    layout: dict[str, object] = {"tile": (128, 128)} if tiled else {"rowsperstrip": 64}
    if kind == "cmyk":
        tifffile.imwrite(path, np.dstack([IMAGE, IMAGE[..., :1]]), photometric="separated", **layout)
    elif kind == "gray":
        tifffile.imwrite(path, IMAGE[..., 0].copy(), photometric="minisblack", **layout)
    else:
        tifffile.imwrite(path, IMAGE.astype(np.uint16) * 200, photometric="rgb", **layout)
    with pytest.raises(OpenError, match=r"not an 8-bit RGB image .*export it from the scanner as 8-bit RGB"):
        open_slide(path)


def test_a_scan_that_broke_off_between_its_levels_is_truncated(scan: Path, tmp_path: Path) -> None:
    whole = scan.read_bytes()
    with tifffile.TiffFile(scan) as tiff:
        last = tiff.pages[-1].offset  # type: ignore[union-attr]
    for end in (last - 1, last + 3):
        (tmp_path / "cut.tif").write_bytes(whole[:end])
        with pytest.raises(OpenError, match=rf"truncated: it goes on at byte {last}, but ends"):
            open_slide(tmp_path / "cut.tif")
    assert tiff_fault(scan) is None
    assert tiff_fault(Path(__file__)) is None


def test_a_huge_plain_image_is_refused_before_decoding(tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")))
    with pytest.raises(OpenError, match="too large for a plain image"):
        open_slide(tmp_path / "bomb.png")


def test_single_images_for_classification(tmp_path: Path) -> None:
    path = tmp_path / "cell.tiff"
    Image.fromarray(np.dstack([IMAGE, np.zeros(IMAGE.shape[:2], np.uint8)]), "RGBA").save(path)
    assert np.array_equal(read_image(path), IMAGE)


def test_slide_is_a_context(scan: Path) -> None:
    with open_slide(scan) as slide:
        assert isinstance(slide, Slide)
        assert slide.size.area == 3072 * 2048
