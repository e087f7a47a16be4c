"""Files that are broken, or made to break: a named error or counted unreadable tiles, never a crash, a hang, or glass."""

from __future__ import annotations

import errno
import io
import os
import re
import struct
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from lookalikes import (
    FORMATS,
    HEIGHT,
    IMAGE,
    TILE,
    WIDTH,
    hamamatsu_ndpi,
    hamamatsu_vms,
    jpeg,
    leica,
    mirax,
    ome_zarr,
    pyramid,
    striped,
    ventana,
    vmic,
)
from numpy.typing import NDArray
from PIL import Image

from slidescreen.errors import OpenError
from slidescreen.geometry import Box, Size
from slidescreen.slide import PixelState, ReadSettings, open_slide
from slidescreen.slide.guards import tiff_fault
from slidescreen.slide.markup import parse_json, parse_xml
from slidescreen.slide.probe import openslide_fault
from slidescreen.slide.reader import Details, StatedScale
from slidescreen.slide.steady import MAX_IN_A_ROW, WAITS_S, Patience, SteadyReader, is_storage_error

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

WHOLE = Box(0, 0, WIDTH, HEIGHT)
BOMB = 400 << 20


def tags_of(path: Path, page: int = 0) -> tuple[int, dict[int, int]]:
    """Position of a directory of a TIFF, and of each tag's entry in it."""
    with tifffile.TiffFile(path) as tiff:
        found = tiff.pages[page]
        return int(found.offset), {tag.code: int(tag.offset) for tag in found.tags}  # type: ignore[union-attr]


def patched(path: Path, at: int, data: bytes) -> Path:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)
    return path


def small(path: Path) -> Path:
    """A classic TIFF whose entries have 12 bytes."""
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(IMAGE[:300, :400], tile=(128, 128), photometric="rgb", metadata=None, description="d" * 40)
        tiff.write(IMAGE[:150, :200], tile=(128, 128), photometric="rgb", metadata=None, subfiletype=1)
    return path


def test_directories_in_a_circle(tmp_path: Path) -> None:
    path = small(tmp_path / "a.tif")
    first, _ = tags_of(path)
    second, tags = tags_of(path, 1)
    patched(path, max(tags.values()) + 12, struct.pack("<I", first))
    with pytest.raises(OpenError, match="hostile TIFF: its directories run in a circle"):
        open_slide(path)
    patched(path, max(tags.values()) + 12, struct.pack("<I", second))
    assert tiff_fault(path) is not None


def test_directories_of_an_ndpi_in_a_circle(tmp_path: Path) -> None:
    path = hamamatsu_ndpi(tmp_path / "a.ndpi")
    assert tiff_fault(path) is None
    data = path.read_bytes()
    first = struct.unpack_from("<Q", data, 4)[0]
    link = first + 2 + 12 * struct.unpack_from("<H", data, first)[0]
    patched(path, link, struct.pack("<Q", first))
    with pytest.raises(OpenError, match="run in a circle"):
        open_slide(path)


@pytest.mark.parametrize(
    ("tag", "value", "message"),
    [
        (256, 2**31, "claims 2147483648 x 300 px"),
        (257, 2**32 - 1, "claims 400 x 4294967295 px"),
        (257, 0, "claims 400 x 0 px"),
        (322, 2**20, "claims tiles of 1048576 x 128 px"),
        (323, 0, "claims tiles of 128 x 0 px"),
        (277, 60_000, "claims 60000 samples"),
    ],
)
def test_absurd_numbers(tmp_path: Path, tag: int, value: int, message: str) -> None:
    path = small(tmp_path / "a.tif")
    patched(path, tags_of(path)[1][tag] + 2, struct.pack("<HII", 4, 1, value))
    with pytest.raises(OpenError, match=message):
        open_slide(path)


def test_huge_tag_counts_and_tables_beyond_the_file(tmp_path: Path) -> None:
    path = small(tmp_path / "a.tif")
    offset, tags = tags_of(path)
    for tag in (324, 325, 270):
        broken = tmp_path / f"{tag}.tif"
        broken.write_bytes(path.read_bytes())
        patched(broken, tags[tag] + 4, struct.pack("<I", 0x7FFFFFFF))
        with pytest.raises(OpenError, match=f"values of tag {tag} lie beyond the end|a description of"):
            open_slide(broken)
    patched(path, offset, struct.pack("<H", 60_000))
    with pytest.raises(OpenError, match="60000 tags|truncated"):
        open_slide(path)


def test_a_tile_table_that_is_too_short(tmp_path: Path) -> None:
    path = small(tmp_path / "a.tif")
    patched(path, tags_of(path)[1][324] + 4, struct.pack("<I", 3))
    with pytest.raises(OpenError, match="a table of 3 tiles in place of 12"):  # OpenSlide would show the others as black
        open_slide(path)


def test_a_tile_table_that_points_beyond_the_file(tmp_path: Path) -> None:
    path = small(tmp_path / "a.tif")
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages[0].tags[324].valueoffset  # type: ignore[union-attr]
    patched(path, at, struct.pack("<I", 0xFFFFFF00))
    with open_slide(path) as slide:
        pixels = slide.read_pixels(Box(0, 0, 400, 300))
        assert (pixels.state[:128, :128] == PixelState.UNREADABLE).all()
        assert (pixels.state == PixelState.UNREADABLE).sum() == 128 * 128


def test_levels_whose_sizes_lie(tmp_path: Path) -> None:
    path = small(tmp_path / "a.tif")
    patched(path, tags_of(path, 1)[1][256] + 2, struct.pack("<HII", 4, 1, 120))
    with pytest.raises(OpenError, match=r"level 1 of 120 x 150 px is no reduction of level 0 \(400 x 300 px\)"):
        open_slide(path, settings=ReadSettings(reader="openslide"))
    with open_slide(path) as slide:
        assert len(slide.levels) == 1, "the level that lies is not used"


@pytest.mark.parametrize("mark", ['<!DOCTYPE x [<!ENTITY y SYSTEM "file:///etc/passwd">]>', "<!doctype x>"])
@pytest.mark.parametrize("wide", [False, True])
def test_xml_with_entities_is_not_parsed(tmp_path: Path, mark: str, wide: bool) -> None:
    path = tmp_path / "a.ome.tif"
    text = f'<?xml version="1.0"?>{mark}<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image/></OME>'
    data = text.encode("utf-16-le" if wide else "ascii")
    tag = [(700, 1, len(data), data, True)]
    tifffile.imwrite(path, IMAGE, tile=(TILE, TILE), photometric="rgb", metadata=None, extratags=tag)
    with pytest.raises(OpenError, match="defines entities"):
        open_slide(path)
    config = f'<?xml version="1.0"?>{mark}<ObjectScanConfig/>'
    with pytest.raises(OpenError, match="not to be trusted"):
        open_slide(vmic(tmp_path / "a.vmic", config))


def test_xml_and_json_nested_deep(tmp_path: Path) -> None:
    deep = '{"mpp":' * 200_000 + "0" + "}" * 200_000
    with pytest.raises(ValueError, match="too deep"):
        parse_json(deep)
    path = pyramid(tmp_path / "a.tif", description=deep)
    with open_slide(path) as slide:
        assert slide.stated_scale is not None
        assert slide.stated_scale.source == "TIFF XResolution tag"
    assert sum(1 for _ in parse_xml("<a>" * 50_000 + "</a>" * 50_000).iter()) == 50_000
    xml = "<Image>" * 50_000 + "</Image>" * 50_000
    with pytest.raises(OpenError, match="describes no Deep Zoom image"):
        open_slide(vmic(tmp_path / "a.vmic", image=xml))
    folder = ome_zarr(tmp_path / "a.zarr")
    (folder / "zarr.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(OpenError, match="ome-zarr"):
        open_slide(folder)


def test_a_ventana_grid_that_would_exhaust_memory(tmp_path: Path) -> None:
    path = ventana(tmp_path / "a.bif")
    path.write_bytes(
        path.read_bytes().replace(b'NumCols="4"', b'NumCols="9999999"'[:11]).replace(b'NumRows="3"', b'NumRows="3"')
    )
    data = path.read_bytes()
    at = data.index(b"NumRows=")
    patched(path, at, b'NumRows="99999999999" x="'[: data.index(b">", at) - at - 1])
    with pytest.raises(OpenError, match="rows or columns of camera images"):
        open_slide(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("IMAGENUMBER_X", "2147483647"), ("IMAGENUMBER_X", "-3"), ("CameraImageDivisionsPerSide", "99999")],
        *[("HIER_0_COUNT", "99999999999999999999"), ("FILE_COUNT", "2000000000"), ("IMAGE_CONCAT_FACTOR", "31")],
    ],
)
def test_a_mirax_whose_key_file_would_hang_or_crash_openslide(tmp_path: Path, key: str, value: str) -> None:
    path = mirax(tmp_path / "a.mrxs")
    ini = tmp_path / "a" / "Slidedat.ini"
    ini.write_text(re.sub(rf"{key} = .*", f"{key} = {value}", ini.read_text()))
    with pytest.raises(OpenError, match=f"Slidedat.ini claims {key} = "):
        open_slide(path)


def test_a_leica_without_a_main_image_on_which_openslide_crashes(tmp_path: Path) -> None:
    path = leica(tmp_path / "a.scn")
    data = path.read_bytes()
    path.write_bytes(data.replace(b'sizeX="128000" sizeY="102400"><image', b'sizeX="000000" sizeY="102400"><image'))
    with pytest.raises(OpenError, match=r"damaged or hostile: OpenSlide crashes on it \(SIG[A-Z]+\)"):
        open_slide(path)


def test_openslide_is_waited_for_but_not_for_ever(tmp_path: Path) -> None:
    path = leica(tmp_path / "a.scn")
    assert openslide_fault(path) is None
    assert openslide_fault(path, 0.5, "import time; time.sleep(30)") == "OpenSlide does not come back from it within 0.5 s"
    assert openslide_fault(pyramid(tmp_path / "a.tif"), 0.5, "import time; time.sleep(30)") is None, "spared"


def test_a_vms_of_absurdly_many_images(tmp_path: Path) -> None:
    path = hamamatsu_vms(tmp_path / "a.vms")
    path.write_text(path.read_text().replace("NoJpegColumns=1", "NoJpegColumns=2147483647"))
    with pytest.raises(OpenError, match="claims NoJpegColumns"):
        open_slide(path)


@pytest.mark.parametrize(("old", "new"), [(b'NumRows="3"', b'NumRows="9"'), (b"level=0 mag=40", b"level=0 mag=21")])
def test_a_ventana_whose_levels_claim_more_tiles_than_there_are(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = ventana(tmp_path / "a.bif")
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(OpenError, match=r"a level of \d+ x \d+ px on a page of|OpenSlide crashes"):
        open_slide(path)


def test_a_png_bomb_and_a_png_text_bomb(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 14_000, 14_000, 8, 2, 0, 0, 0)
    packed = zlib.compress(bytes(1 << 26), 9)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(bomb + chunk(b"IDAT", packed) + chunk(b"IEND", b""))
    with pytest.raises(OpenError, match="too large for a plain image"):
        open_slide(tmp_path / "a.png")
    text = chunk(b"zTXt", b"Comment\0\0" + packed) * 3
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + text + chunk(b"IEND", b""))
    tracemalloc.start()
    try:
        with pytest.raises(OpenError):
            open_slide(tmp_path / "b.png")
        assert tracemalloc.get_traced_memory()[1] < 1 << 30
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("reader", ["openslide", "tifffile", "tiled-tiff"])
def test_a_tiff_tile_that_unpacks_to_more_than_a_tile(tmp_path: Path, reader: str) -> None:
    path = tmp_path / "a.tif"
    options = {"tile": (256, 256), "photometric": "rgb", "metadata": None, "compression": "zlib"}
    tifffile.imwrite(path, IMAGE, **options)
    bomb = zlib.compress(bytes(BOMB), 1)
    with tifffile.TiffFile(path) as tiff:
        tags = tiff.pages[0].tags  # type: ignore[union-attr]
        places = [tags[324].valueoffset, tags[325].valueoffset]
    end = path.stat().st_size
    for place, value in zip(places, (end, len(bomb)), strict=True):
        patched(path, place, struct.pack("<I", value))
    with path.open("ab") as file:
        file.write(bomb)
    del bomb

    def read() -> None:
        with open_slide(path, settings=ReadSettings(reader=reader)) as slide:
            slide.read_pixels(Box(0, 0, 256, 256))

    assert peak_of(read) < BOMB // 2


def peak_of(action: Callable[[], object]) -> int:
    """Bytes by which the process grows at most while it does something."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not os.access(reset, os.W_OK):
        pytest.skip("this system does not tell its peak of memory")
    reset.write_text("5")
    before = int(status.read_text().split("VmRSS:")[1].split()[0])
    action()
    return (int(status.read_text().split("VmHWM:")[1].split()[0]) - before) << 10


@pytest.mark.parametrize("reader", ["openslide", "tifffile", "tiled-tiff"])
def test_a_jpeg_tile_whose_header_claims_another_size(tmp_path: Path, reader: str) -> None:
    path = pyramid(tmp_path / "a.tif")
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[0]  # type: ignore[union-attr]
    frame = data.index(b"\xff\xc0", offset)
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    path.write_bytes(data)
    states: list[NDArray[np.uint8]] = []

    def read() -> None:
        with open_slide(path, settings=ReadSettings(reader=reader)) as slide:
            states.append(slide.read_pixels(WHOLE).state)

    assert peak_of(read) < BOMB // 2
    assert (states[0][:TILE, :TILE] == PixelState.UNREADABLE).all()
    assert (states[0] == PixelState.UNREADABLE).sum() == TILE * TILE


def test_a_zip_bomb_in_a_vmic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("dzc_output.xml", bytes(64 << 20))
    with zipfile.ZipFile(tmp_path / "a.vmic", "w") as outer:
        outer.writestr("Image.vmici", bomb.getvalue())
    with pytest.raises(OpenError, match="unpacks to more than 16 MiB"):
        open_slide(tmp_path / "a.vmic")
    with zipfile.ZipFile(tmp_path / "b.vmic", "w", zipfile.ZIP_DEFLATED) as outer, outer.open("Image.vmici", "w") as member:
        for _ in range(9):
            member.write(bytes(1 << 20))
    monkeypatch.setattr("slidescreen.slide.readers.vmic.MAX_PACKED", 8 << 20)
    with pytest.raises(OpenError, match="unpacks to more than 8 MiB"):
        open_slide(tmp_path / "b.vmic")


def test_tricks_inside_a_vmic(tmp_path: Path) -> None:
    lost, wrong = "dzc_output_files/10/1_0.jpg", "dzc_output_files/10/2_1.jpg"
    path = vmic(tmp_path / "a.vmic", tiles={lost: b"", wrong: jpeg(IMAGE[:100, :100])})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../evil.txt", "x")
        archive.writestr("/etc/evil.txt", "x")
    with open_slide(path) as slide:
        pixels = slide.read_pixels(WHOLE)
    assert (pixels.state[:TILE, TILE : 2 * TILE] == PixelState.UNREADABLE).all()
    assert (pixels.state[TILE : 2 * TILE, 2 * TILE : 3 * TILE] == PixelState.UNREADABLE).all()
    assert (pixels.state == PixelState.UNREADABLE).sum() == 2 * TILE * TILE
    assert not list(tmp_path.parent.glob("**/evil.txt"))
    for image in ('<Image TileSize="0" Format="jpg"><Size Width="9" Height="9"/></Image>', "<Image/>", "<x", ""):
        with pytest.raises(OpenError):
            open_slide(vmic(tmp_path / "b.vmic", image=image or " "))
    huge = f'<Image TileSize="256" Overlap="0" Format="jpg"><Size Width="{2**31}" Height="9"/></Image>'
    with pytest.raises(OpenError, match="claims 2147483648 x 9 px"):
        open_slide(vmic(tmp_path / "c.vmic", image=huge))


def test_a_zarr_that_names_other_places_or_absurd_chunks(tmp_path: Path) -> None:
    import json

    folder = ome_zarr(tmp_path / "a.zarr")
    content = json.loads((folder / "zarr.json").read_text())
    dataset = content["attributes"]["ome"]["multiscales"][0]["datasets"][0]
    for path in ("../b.zarr/0", "/0", ""):
        dataset["path"] = path
        (folder / "zarr.json").write_text(json.dumps(content))
        with pytest.raises(OpenError, match="names an array outside itself"):
            open_slide(folder)
    dataset["path"] = "0"
    (folder / "zarr.json").write_text(json.dumps(content))
    array = json.loads((folder / "0" / "zarr.json").read_text())
    array["chunk_grid"]["configuration"]["chunk_shape"] = [1, 3, 1, 2**20, 2**20]
    array["shape"] = [1, 3, 1, 2**20, 2**20]
    (folder / "0" / "zarr.json").write_text(json.dumps(array))
    with pytest.raises(OpenError, match="too large to decode|is no reduction"):
        open_slide(folder)


@pytest.mark.parametrize("write", [pyramid, striped], ids=["pyramid", "striped"])
def test_truncated_at_any_byte(tmp_path: Path, write: object) -> None:
    whole = write(tmp_path / "a.tif").read_bytes()  # type: ignore[operator]
    outcomes = set()
    for end in [*range(1, 60, 7), *range(60, len(whole), len(whole) // 25)]:
        path = tmp_path / "cut.tif"
        path.write_bytes(whole[:end])
        try:
            with open_slide(path) as slide:
                states = [slide.read_pixels(WHOLE, level).state for level in range(len(slide.levels))]
                lost = any((state == PixelState.UNREADABLE).any() for state in states)
                outcomes.add("unreadable" if lost else f"whole up to byte {end} of {len(whole)}")
        except OpenError as error:
            assert str(path) in str(error)
            outcomes.add("refused")
    assert outcomes <= {"refused", "unreadable"}, "a part of a file never passes for a whole one"


class Shaky:
    """A reader whose storage fails as many times as it is told."""

    name = "shaky"
    vendor = "test"
    sizes = (Size(64, 64),)
    stated_scale: StatedScale | None = None
    details = Details()
    failures: list[Exception]
    opened = 0

    def __init__(self, _path: Path) -> None:
        type(self).opened += 1

    def block(self, _level: int) -> Size:
        return Size(64, 64)

    def read(self, _level: int, box: Box) -> NDArray[np.uint8]:
        if self.failures:
            raise self.failures.pop(0)
        return np.full((box.height, box.width, 3), 7, np.uint8)

    def close(self) -> None:
        pass


def test_a_read_that_fails_is_retried_a_little_and_then_counted() -> None:
    waits: list[float] = []
    patience = Patience(waits.append)
    Shaky.failures, Shaky.opened = [OSError(errno.EIO, "I/O"), ConnectionResetError()], 0
    reader = SteadyReader(Shaky, Path("x"), patience)
    assert (reader.read(0, Box(0, 0, 8, 8)) == 7).all()
    assert waits == list(WAITS_S[:2])
    assert Shaky.opened == 3, "the handle is opened anew"
    Shaky.failures = [OSError(errno.ESTALE, "stale")] * 1000
    waits.clear()
    for _ in range(MAX_IN_A_ROW + 20):
        with pytest.raises(OSError, match="stale"):
            reader.read(0, Box(0, 0, 8, 8))
    assert len(waits) == MAX_IN_A_ROW * len(WAITS_S), "storage that is gone for good costs no more time"
    Shaky.failures = []
    reader.read(0, Box(0, 0, 8, 8))
    Shaky.failures = [OSError(errno.EIO, "I/O")]
    waits.clear()
    reader.read(0, Box(0, 0, 8, 8))
    assert waits == [WAITS_S[0]]


def test_damage_is_not_waited_for() -> None:
    waits: list[float] = []
    reader = SteadyReader(Shaky, Path("x"), Patience(waits.append))
    Shaky.failures = [ValueError("corrupt JPEG"), OSError("broken data stream")]
    for _ in range(2):
        with pytest.raises((ValueError, OSError)):
            reader.read(0, Box(0, 0, 8, 8))
    assert not waits
    import openslide

    assert is_storage_error(openslide.OpenSlideError(f"Couldn't read tile: {os.strerror(errno.EIO)}"))
    assert not is_storage_error(openslide.OpenSlideError("Corrupt JPEG data: premature end of data segment"))


def test_a_file_that_vanishes_while_it_is_read_is_counted(tmp_path: Path) -> None:
    path = striped(tmp_path / "a.tif")
    waits: list[float] = []
    with open_slide(path, patience=Patience(waits.append)) as slide:
        slide.read_pixels(Box(0, 0, 64, 64))
        slide.close()
        path.unlink()
        pixels = slide.read_pixels(WHOLE)
    assert (pixels.state == PixelState.UNREADABLE).all()


def test_mutations_neither_crash_nor_hang_nor_pass_for_glass() -> None:
    import fuzz

    names = [name for name in FORMATS if name not in ("dicom", "ome-zarr-0.4", "ome-zarr-0.5", "jpeg")]
    outcomes = fuzz.run(6, names, jobs=1)
    assert len(outcomes) == 6 * len(names) >= 100
    assert not [o for o in outcomes if o.outcome in fuzz.BAD]
    assert {"opened", "refused", "partly unreadable"} <= {o.outcome for o in outcomes}


def test_an_animated_or_palette_image_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image = Image.fromarray(IMAGE).quantize(32)
    image.save(path)
    with open_slide(path) as slide:
        assert np.array_equal(slide.read_region(WHOLE), np.asarray(image.convert("RGB")))
