"""The fast TIFF reader beside OpenSlide on the same files: the same pixels in the same places, or a refusal."""

import threading
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import lookalikes
import numpy as np
import openslide
import pytest
import tifffile
from numpy.typing import NDArray

from slidescreen.errors import OpenError
from slidescreen.geometry import Box, Point
from slidescreen.patches import cut_patches
from slidescreen.records import Cell, Scale
from slidescreen.slide import PixelState, Slide, choose_grid, open_slide, read_grid
from slidescreen.slide.readers import OpenSlideReader, TiledTiffReader
from slidescreen.slide.tile_codecs import TileCodec, jpeg_size

IMAGE = lookalikes.IMAGE[:675, :808]
"""Sides that are no multiple of a tile."""
BOXES = (Box(0, 0, 808, 675), Box(100, 90, 300, 200), Box(700, 600, 108, 75), Box(255, 255, 2, 2), Box(5, 6, 1, 1))
JPEG: dict[str, Any] = {"compression": "jpeg", "compressionargs": {"level": 90, "subsampling": "420"}}
LOSSLESS: dict[str, dict[str, Any]] = {
    "none": {},
    "lzw": {"compression": "lzw"},
    "lzw-differences": {"compression": "lzw", "predictor": True},
    "deflate": {"compression": "adobe_deflate"},
    "deflate-differences": {"compression": "deflate", "predictor": True},
    "zstd": {"compression": "zstd"},
    "planes": {"compression": "deflate", "planarconfig": "separate"},
    "webp": {"compression": "webp", "compressionargs": {"lossless": True}},
    "jpeg-xl": {"compression": "jpegxl", "compressionargs": {"lossless": True}},
    "jpeg-2000": {"compression": "jpeg2000", "compressionargs": {"level": 0, "codecformat": "J2K", "mct": True}},
    "aperio-jpeg-2000": {"compression": "aperio_jp2000_rgb", "compressionargs": {"level": 0, "codecformat": "J2K"}},
}
JPEGS: dict[str, dict[str, Any]] = {
    "ycbcr-420": JPEG,
    "ycbcr-444": {"compression": "jpeg", "compressionargs": {"level": 90, "subsampling": "444"}},
    "rgb": {"compression": "jpeg", "compressionargs": {"level": 90, "outcolorspace": "rgb"}},
}


def write(path: Path, image: NDArray[np.uint8] = IMAGE, tile: int = 128, **options: Any) -> Path:
    if options.get("planarconfig") == "separate":
        image = np.moveaxis(image, -1, 0)
    with tifffile.TiffWriter(path, bigtiff=options.pop("bigtiff", False), byteorder=options.pop("byteorder", "<")) as tiff:
        tiff.write(
            image, tile=(tile, tile), photometric="rgb", resolution=(1e5, 1e5), resolutionunit=3, metadata=None, **options
        )
    return path


def fast(path: Path) -> Slide:
    return open_slide(path, [TiledTiffReader])


def overwrite_tag(path: Path, name: str, value: Any) -> None:
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags[name].overwrite(value)  # type: ignore[union-attr]


def tile_at(path: Path, index: int) -> tuple[int, int]:
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        return page.dataoffsets[index], page.databytecounts[index]  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_tiles_are_exact(tmp_path: Path, kind: str) -> None:
    image = IMAGE[:300, :400]
    for layout in ({}, {"bigtiff": True, "byteorder": ">"}) if kind in ("none", "deflate-differences", "planes") else ({},):
        with fast(write(tmp_path / "a.tif", image, **LOSSLESS[kind], **layout)) as slide:
            assert slide.reader == "tiled-tiff"
            for box in (Box(0, 0, 400, 300), Box(100, 90, 300, 200), Box(380, 290, 20, 10), Box(255, 255, 2, 2)):
                pixels = slide.read_pixels(box)
                assert np.array_equal(pixels.rgb, image[box.y : box.bottom, box.x : box.right])
                assert not pixels.state.any()


@pytest.mark.parametrize("kind", JPEGS)
def test_jpeg_tiles_are_exactly_what_openslide_reads(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "a.tif", **JPEGS[kind])
    if kind == "rgb":
        overwrite_tag(path, "PhotometricInterpretation", 2)
    with fast(path) as slide, openslide.OpenSlide(path) as other:
        assert np.abs(slide.read_region(BOXES[0]).astype(int) - IMAGE).mean() < 3
        for box in BOXES:
            theirs = np.asarray(other.read_region((box.x, box.y), 0, (box.width, box.height)))[..., :3]
            assert np.array_equal(slide.read_region(box), theirs)


def test_the_jpegs_own_colours_win_over_a_tag_that_is_wrong(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", **JPEG)
    right = tifffile.imread(path)
    with fast(path) as slide:
        assert np.array_equal(slide.read_region(BOXES[0]), right)
    data = imagecodecs.jpeg8_encode(IMAGE[:128, :128], level=90)  # with a JFIF marker: YCbCr
    codec = TileCodec(7, (128, 128, 3), rgb=True)
    assert np.abs(codec.decode(data).astype(int) - IMAGE[:128, :128]).mean() < 3
    assert np.abs(codec.decode_reduced(data, 2).mean((0, 1)) - IMAGE[:128, :128].mean((0, 1))).max() < 2


@pytest.mark.parametrize(
    "name", [n for n, (file, _) in lookalikes.FORMATS.items() if Path(file).suffix not in (".zarr", "", ".png")]
)
def test_each_format_is_read_as_openslide_reads_it_or_refused(tmp_path: Path, name: str) -> None:
    file, paint = lookalikes.FORMATS[name]
    path = paint(tmp_path / file)
    try:
        ours = TiledTiffReader(path)
    except (ValueError, OSError, tifffile.TiffFileError) as error:
        assert name in ("hamamatsu-ndpi", "hamamatsu-vms", "leica", "mirax", "striped", "vmic", "ome-zarr-zip", "jpeg"), error
        return
    assert name in ("aperio", "aperio-jpeg2000", "pyramid", "ome-tiff", "flat-tiled", "gtif", "philips", "trestle", "ventana")
    if name == "ome-tiff":
        assert len(ours.sizes) == 2  # OpenSlide does not see the second level
        return ours.close()
    theirs = OpenSlideReader(path)
    assert (ours.sizes, ours.vendor, ours.stated_scale) == (theirs.sizes, theirs.vendor, theirs.stated_scale)
    for level, size in enumerate(ours.sizes):
        for box in (Box(0, 0, size.width, size.height), Box(130, 77, 300, 200)):
            assert np.array_equal(ours.read(level, box), theirs.read(level, box)[..., :3])
    theirs.close()
    ours.close()


def test_a_real_aperio_scan_is_exact(real_images: Path) -> None:
    path = real_images / "slides" / "CMU-1-Small-Region.svs"
    with open_slide(path) as ours, openslide.OpenSlide(path) as theirs:
        assert (ours.reader, ours.vendor) == ("tiled-tiff", "aperio")
        assert ours.stated_scale is not None
        assert ours.stated_scale.x == pytest.approx(0.499)
        whole = np.asarray(theirs.read_region((0, 0), 0, theirs.dimensions))[..., :3]
        assert np.array_equal(ours.read_region(Box(0, 0, *theirs.dimensions)), whole)


def sparse(path: Path, level_missing: int = 0) -> Path:
    """Level `level_missing` of two has no tile at its upper left."""
    with tifffile.TiffWriter(path) as tiff:
        for level, image in enumerate((lookalikes.IMAGE, lookalikes.HALF)):
            tiles = [
                imagecodecs.jpeg8_encode(image[y : y + 128, x : x + 128], level=90)
                for y in range(0, image.shape[0], 128)
                for x in range(0, image.shape[1], 128)
            ]
            tiles[0] = b"" if level == level_missing else tiles[0]
            said = {"description": "Aperio Image Library v1\r\n|MPP = 0.1"} if level == 0 and level_missing else {}
            options = {
                "shape": image.shape,
                "dtype": np.uint8,
                "tile": (128, 128),
                "photometric": "ycbcr",
                "compression": "jpeg",
            }
            tiff.write(iter(tiles), subfiletype=1 if level and not said else 0, metadata=None, software=None, **options, **said)
    return path


@pytest.mark.parametrize("reduction", [1, 4])
def test_a_missing_tile_is_unscanned_as_in_openslide(tmp_path: Path, reduction: int) -> None:
    path = sparse(tmp_path / "a.tif")
    with fast(path) as slide, openslide.OpenSlide(path) as theirs:
        alpha = np.asarray(theirs.read_region((0, 0), 0, (1024, 768)))[::reduction, ::reduction, 3]
        pixels = slide.read_pixels(Box(0, 0, 1024 // reduction, 768 // reduction), 0, reduction)
    assert np.array_equal(pixels.state == PixelState.UNSCANNED, alpha == 0)
    assert (pixels.rgb[alpha == 0] == 255).all()
    assert (alpha == 0).sum() == (128 // reduction) ** 2


def test_aperios_missing_tiles_are_left_to_openslide(tmp_path: Path) -> None:
    path = lookalikes.aperio(tmp_path / "a.svs")
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tag = tiff.pages[2].tags["TileByteCounts"]  # type: ignore[union-attr]
        tag.overwrite((0, *tag.value[1:]))
    with pytest.raises(ValueError, match="filled from finer levels"):
        TiledTiffReader(path)
    with open_slide(path) as slide:
        assert slide.reader == "openslide"


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("kind", JPEGS)
def test_reduced_reading_is_averaging_nearly(tmp_path: Path, kind: str, factor: int) -> None:
    """Also at the right and lower border, where tiles are padded: by black here."""
    path = write(tmp_path / "a.tif", **JPEGS[kind])
    if kind == "rgb":
        overwrite_tag(path, "PhotometricInterpretation", 2)
    width, height = -(-808 // factor), -(-675 // factor)
    with fast(path) as slide:
        assert slide.reductions(0) == (2, 4, 8)
        full = slide.read_region(BOXES[0])
        small = slide.read_pixels(Box(0, 0, width, height), 0, factor)
        corner = slide.read_pixels(Box(width - 3, height - 5, 3, 5), 0, factor)
    padded = np.pad(full, ((0, height * factor - 675), (0, width * factor - 808), (0, 0)), mode="edge")
    mean = cv2.resize(padded, (width, height), interpolation=cv2.INTER_AREA)
    off = np.abs(small.rgb.astype(int) - mean)
    assert off.mean() < 0.6
    assert off.max() <= 8
    assert off[:, -1].max() <= 1  # decoded whole and averaged
    assert np.array_equal(corner.rgb, small.rgb[-5:, -3:])
    assert not small.state.any()


def test_a_flat_jpeg_is_looked_at_as_though_it_had_levels(tmp_path: Path) -> None:
    with fast(write(tmp_path / "flat.tif", **JPEG)) as slide:
        grids = {wanted: choose_grid(slide, wanted) for wanted in (1, 2, 3, 4.1, 13.8, 30)}
        assert {w: (g.factor, g.reduction) for w, g in grids.items()} == {
            **{1: (1, 1), 2: (2, 2), 3: (4, 4), 4.1: (4, 4)},
            **{13.8: (16, 8), 30: (32, 8)},
        }
        pixels = read_grid(slide, grids[13.8], Box(0, 0, grids[13.8].size.width, grids[13.8].size.height))
        mean = cv2.resize(IMAGE[:672, :800], (50, 42), interpolation=cv2.INTER_AREA)
        assert np.abs(pixels.rgb[:42, :50].astype(int) - mean).mean() < 2.5
        decoded = slide.blocks_decoded
        assert decoded == 7 * 6
    with fast(write(tmp_path / "lossless.tif")) as slide:
        assert slide.reductions(0) == ()
        assert choose_grid(slide, 13.8).factor == 14
    with fast(lookalikes.pyramid(tmp_path / "pyramid.tif")) as slide:
        assert (choose_grid(slide, 1.5).level, choose_grid(slide, 1.5).reduction) in ((0, 1), (1, 1))
        assert (choose_grid(slide, 8).level, choose_grid(slide, 8).factor, choose_grid(slide, 8).reduction) == (1, 4, 4)


def spoil(path: Path, index: int, how: str) -> None:
    offset, count = tile_at(path, index)
    data = path.read_bytes()[offset : offset + count]
    new = {
        "cut": data[: count // 2] + bytes(count - count // 2),
        "other size": data.replace(b"\x00\x80\x00\x80\x03", b"\x40\x00\x40\x00\x03", 1),
        "no JPEG": b"\xff" * count,
    }[how]
    assert new != data
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(new)


@pytest.mark.parametrize("reduction", [1, 8])
@pytest.mark.parametrize("how", ["cut", "other size", "no JPEG"])
def test_a_spoilt_jpeg_is_unreadable_never_grey(tmp_path: Path, how: str, reduction: int) -> None:
    path = write(tmp_path / "a.tif", **JPEG)
    spoil(path, 8, how)
    side = 128 // reduction
    with fast(path) as slide:
        state = slide.read_pixels(Box(0, 0, 808 // reduction, 675 // reduction), 0, reduction).state
        assert (state[side : 2 * side, side : 2 * side] == PixelState.UNREADABLE).all()
        assert (state == PixelState.UNREADABLE).sum() == side * side
        assert slide.unreadable_blocks == {(0, 1, 1)}
        assert not slide.read_pixels(Box(0, 0, 50, 50)).state.any()  # the shared handle is still open


@pytest.mark.parametrize("kind", ["lzw", "deflate", "none"])
def test_short_tiles_are_unreadable_and_absurd_ones_refused(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "a.tif", **LOSSLESS[kind])
    with tifffile.TiffFile(path, mode="r+") as tiff:
        counts = tiff.pages[0].tags["TileByteCounts"]  # type: ignore[union-attr]
        whole = counts.value
        counts.overwrite((whole[0] // 3, *whole[1:]), dtype="I")
    with fast(path) as slide:
        assert (slide.read_pixels(Box(0, 0, 128, 128)).state == PixelState.UNREADABLE).all()
        assert not slide.read_pixels(Box(128, 0, 100, 100)).state.any()
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags["TileByteCounts"].overwrite((whole[0], 1 << 30, *whole[2:]), dtype="I")  # type: ignore[union-attr]
    with pytest.raises(OpenError, match="claims a tile of 1073741824 bytes"):
        fast(path)


def test_what_is_not_plain_is_refused_by_name(tmp_path: Path) -> None:
    striped = lookalikes.striped(tmp_path / "strips.tif")
    with pytest.raises(ValueError, match="not tiled|no pages of tiles"):
        TiledTiffReader(striped)
    turned = write(tmp_path / "turned.tif", extratags=[("Orientation", "H", 1, 6, True)])
    with pytest.raises(ValueError, match="not plain: turned"):
        TiledTiffReader(turned)
    rgba = np.dstack([IMAGE, IMAGE[..., 0]])
    with pytest.raises(ValueError, match="alpha of another kind"):
        TiledTiffReader(write(tmp_path / "premultiplied.tif", rgba, extrasamples=["assocalpha"]))
    two = tmp_path / "two.tif"
    with tifffile.TiffWriter(two) as tiff:
        for _ in range(2):
            tiff.write(IMAGE, tile=(128, 128), photometric="rgb", subfiletype=0, metadata=None)
    with pytest.raises(ValueError, match="no pages of tiles"):
        TiledTiffReader(two)


def test_small_tiles_are_joined_to_blocks(tmp_path: Path) -> None:
    with fast(write(tmp_path / "a.tif", tile=32, **JPEG)) as slide:
        assert (slide._blocks[0].width, slide._blocks[0].height) == (512, 512)
        assert np.array_equal(slide.read_region(BOXES[1]), tifffile.imread(tmp_path / "a.tif")[90:290, 100:400])
        small = slide.read_region(Box(0, 0, 101, 84), 0)
        assert small.shape == (84, 101, 3)


def test_threads_share_one_handle_and_decode_each_tile_once(scan: Path) -> None:
    with open_slide(scan) as slide, open_slide(scan) as other:
        expected = other.read_region(Box(0, 0, 1500, 1500))
        results: list[NDArray[np.uint8]] = []
        threads = [threading.Thread(target=lambda: results.append(slide.read_region(Box(0, 0, 1500, 1500)))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 8
        assert all(np.array_equal(r, expected) for r in results)
        assert len(slide._handles) == 1
        assert slide.blocks_decoded == 36


def test_a_failure_while_others_wait_reaches_only_its_own_thread(scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_slide(scan) as slide:
        entered, go = threading.Event(), threading.Event()
        whole = Slide._decode
        first = []

        def decode(self: Slide, key: Any) -> Any:
            if not first:
                first.append(key)
                entered.set()
                go.wait(5)
                raise MemoryError
            return whole(self, key)

        monkeypatch.setattr(Slide, "_decode", decode)
        failed: list[BaseException] = []

        def fail() -> None:
            try:
                slide.read_region(Box(0, 0, 10, 10))
            except MemoryError as error:
                failed.append(error)

        one = threading.Thread(target=fail)
        one.start()
        assert entered.wait(5)
        found: list[Any] = []
        two = threading.Thread(target=lambda: found.append(slide.read_region(Box(0, 0, 10, 10))))
        two.start()
        go.set()
        one.join(5)
        two.join(5)
        assert len(failed) == len(found) == 1


def test_many_boxes_come_back_in_their_order(scan: Path) -> None:
    rng = np.random.default_rng(2)
    boxes = [Box(int(x), int(y), int(w), 90) for x, y, w in rng.integers((-50, -50, 1), (3050, 2030, 400), (60, 3))]
    with open_slide(scan) as slide, open_slide(scan) as other:
        for box, pixels in zip(boxes, slide.read_many(boxes), strict=True):
            alone = other.read_pixels(box)
            assert np.array_equal(pixels.rgb, alone.rgb)
            assert np.array_equal(pixels.state, alone.state)


def tiles_of(centre: tuple[int, int]) -> set[tuple[int, int]]:
    columns, rows = (range(max(0, c - 200) // 256, (c + 199) // 256 + 1) for c in centre)
    return {(column, row) for column in columns for row in rows}


def test_cells_in_any_order_decode_each_tile_once(scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a cache of 60 of the scan's 96 tiles, and rows of 12: cells in the order of the file need no more."""
    monkeypatch.setattr("slidescreen.slide.slide.CACHE_BYTES", 60 * 256 * 256 * 3)
    centres = [(x, y) for y in range(200, 1900, 400) for x in range(200, 2900, 300)]
    mixed = [centres[i] for i in np.random.default_rng(0).permutation(len(centres))]
    cells = [Cell(Point(x, y), Box.around(Point(x, y), 100), 50.0) for x, y in mixed]
    with open_slide(scan) as slide:
        patches = list(cut_patches(slide, cells, Scale(0.0725, "test")))
        assert [(p.cell.centre.x, p.cell.centre.y) for p in patches] == mixed
        assert slide.blocks_decoded == len({k for c in mixed for k in tiles_of(c)}) > 80
        assert slide._cache_bytes <= 60 * 256 * 256 * 3


def test_a_jpegs_size_is_read_from_its_header() -> None:
    data = imagecodecs.jpeg8_encode(IMAGE[:100, :77])
    assert jpeg_size(data) == (77, 100)
    for bad in (b"", b"\xff\xd8", data[:10], b"\xff" * 100, bytes(100)):
        with pytest.raises(ValueError, match="without a frame header"):
            jpeg_size(bad)
