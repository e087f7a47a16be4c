"""Every format: what is read of it, by whom, and why; colours, scales, what is not there, where files lie."""

from __future__ import annotations

import os
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
import zarr
from lookalikes import FORMATS, HALF, ICC, IMAGE, TILE, UM_PER_PX, aperio, dicom, gtif, ome_zarr, png, pyramid, striped, vmic
from numpy.typing import NDArray
from PIL import Image, ImageCms
from typer.testing import CliRunner

from slidescreen.batch import identify, list_scans
from slidescreen.cli import app
from slidescreen.config import Settings
from slidescreen.errors import OpenError, ScaleError, UsageError
from slidescreen.geometry import Box
from slidescreen.scale import resolve_scale
from slidescreen.slide import READERS, PixelState, ReadSettings, Slide, fingerprint, location, open_slide, scans_under
from slidescreen.slide.known_answers import DECODERS, ENCODED, compare_readers, decoder_error, require_decoders

VENDORS = {
    **{"aperio": "aperio", "aperio-jpeg2000": "aperio", "hamamatsu-ndpi": "hamamatsu", "hamamatsu-vms": "hamamatsu"},
    **{"leica": "leica", "mirax": "mirax", "philips": "philips", "trestle": "trestle", "ventana": "ventana"},
}
READ_BY = {
    **{"striped": "tifffile", "vmic": "vmic", "dicom": "wsidicom", "png": "pillow", "jpeg": "pillow"},
    **{"ome-zarr-0.4": "ome-zarr", "ome-zarr-0.5": "ome-zarr", "ome-zarr-zip": "ome-zarr"},
}
TIFF_READERS = ("openslide", "tifffile", "tiled-tiff")
MACROS = {"aperio", "aperio-jpeg2000", "hamamatsu-ndpi", "hamamatsu-vms", "leica", "philips", "ventana", "vmic"}
ONE_LEVEL = {"mirax", "flat-tiled", "striped", "png", "jpeg"}
WITHOUT_POWER = {"pyramid", "ome-tiff", "flat-tiled", "striped", "dicom", "png", "jpeg"}
WITHOUT_POWER |= {"ome-zarr-0.4", "ome-zarr-0.5", "ome-zarr-zip"}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file of each format."""
    folder = tmp_path_factory.mktemp("formats")
    found = {}
    for name, (file, write) in FORMATS.items():
        (folder / name).mkdir()
        found[name] = write(folder / name / file)
    return found


def image_of(slide: Slide, level: int = 0) -> NDArray[np.uint8]:
    size = slide.levels[level].size
    return slide.read_region(Box(0, 0, size.width, size.height), level)


@pytest.mark.parametrize("name", list(FORMATS))
def test_format_is_read(scans: dict[str, Path], name: str) -> None:
    path, gap = scans[name], 128 if name == "leica" else 0
    if name in VENDORS:
        assert openslide.OpenSlide.detect_format(path) == VENDORS[name], "the look-alike counts when OpenSlide names the vendor"
    with open_slide(path) as slide:
        assert slide.reader in ((READ_BY[name],) if name in READ_BY else TIFF_READERS)
        assert slide.vendor == VENDORS.get(name, slide.vendor)
        assert (slide.size.width, slide.size.height) == (1024 + 2 * gap, 768 + 2 * gap)
        assert (len(slide.levels) == 1) == (name in ONE_LEVEL)
        assert ("macro" in slide.details.images) == (name in MACROS)
        assert slide.details.objective_power == (None if name in WITHOUT_POWER else 40)
        if name in ("png", "jpeg"):
            assert slide.stated_scale is None
        else:
            assert slide.stated_scale is not None
            assert (slide.stated_scale.x, slide.stated_scale.y) == pytest.approx((UM_PER_PX, UM_PER_PX), rel=1e-3)
            assert resolve_scale(path, slide.stated_scale, None, slide.details.other_scales).source == slide.stated_scale.source
        pixels = slide.read_pixels(Box(0, 0, slide.size.width, slide.size.height))
        inner = np.s_[gap : gap + 768, gap : gap + 1024]
        assert np.abs(pixels.rgb[inner].astype(int) - IMAGE).mean() < 1.2
        assert (pixels.state[inner] == PixelState.SCANNED).all()
        if gap:
            assert (pixels.state[:gap] == PixelState.UNSCANNED).all()
            assert (pixels.rgb[:gap] == 255).all()
        part = slide.read_region(Box(gap + 301, gap + 203, 300, 200))
        assert np.array_equal(part, pixels.rgb[gap + 203 : gap + 403, gap + 301 : gap + 601])
        if name not in ONE_LEVEL:
            low = image_of(slide, 1)[gap // 2 :, gap // 2 :][:384, :512]
            assert np.abs(low.astype(int) - HALF).mean() < 2.5
        assert slide.why
        assert len(slide.fingerprint()) == 64


@pytest.mark.parametrize("kind", ["jpeg2000", "htj2k"])
def test_dicom_of_jpeg_2000_and_htj2k(tmp_path: Path, kind: str) -> None:
    from wsidicom.codec.settings import HTJpeg2000Settings, Jpeg2kSettings

    settings = {"jpeg2000": Jpeg2kSettings(), "htj2k": HTJpeg2000Settings()}[kind]
    folder = dicom(tmp_path / "scan", settings, force_transcoding=True)
    with open_slide(folder) as slide, open_slide(folder / "level-1.dcm") as one:
        assert np.abs(image_of(slide).astype(int) - IMAGE).mean() < 3
        assert one.size == slide.size, "one file of a series stands for the series"
        assert one.fingerprint()


def test_gtif_tells_its_scale_which_openslide_loses(tmp_path: Path) -> None:
    path = gtif(tmp_path / "a.gtif")
    assert openslide.PROPERTY_NAME_MPP_X not in openslide.OpenSlide(path).properties
    with open_slide(path) as slide:
        assert slide.vendor == "precipoint"
        assert slide.stated_scale is not None
        assert slide.stated_scale.source == "GTIF ImageDescription mpp"


def test_older_vmic_names_its_inner_archive_differently(tmp_path: Path) -> None:
    with open_slide(vmic(tmp_path / "a.vmic", inner="Image")) as slide:
        assert np.abs(image_of(slide).astype(int) - IMAGE).mean() < 1.2


def test_vmic_without_a_scale_states_none(tmp_path: Path) -> None:
    config = "<ObjectScanConfig><Objective><Magnification>40</Magnification></Objective></ObjectScanConfig>"
    with open_slide(vmic(tmp_path / "a.vmic", config)) as slide:
        assert slide.stated_scale is None
        assert slide.details.objective_power == 40
        with pytest.raises(ScaleError, match="states no um/px; add --um-per-px"):
            resolve_scale(slide.path, slide.stated_scale, None)


def test_scale_is_never_made_of_a_magnification(tmp_path: Path) -> None:
    path = aperio(tmp_path / "a.svs")
    data = path.read_bytes().replace(b"MPP = 0.1000", b"XPP = 0.1000")
    path.write_bytes(data)
    with open_slide(path) as slide:
        assert slide.details.objective_power == 40
        assert slide.stated_scale is None


def test_two_tags_that_disagree_stop_the_scan_and_are_both_shown(tmp_path: Path) -> None:
    close = aperio(tmp_path / "close.svs", resolution=(1e4 / 0.103,) * 2, resolutionunit=3)
    printer = aperio(tmp_path / "printer.svs", resolution=(300, 300), resolutionunit=2)
    for path in (close, printer):
        with open_slide(path) as slide:
            assert identify(slide, None).scale.um_per_px == pytest.approx(UM_PER_PX)
    path = aperio(tmp_path / "off.svs", resolution=(1e4 / 0.25,) * 2, resolutionunit=3)
    with open_slide(path) as slide:
        with pytest.raises(
            ScaleError, match=r"states 0\.1 um/px \(.*mpp.*\) and 0\.25 um/px \(TIFF XResolution tag\).*--um-per-px"
        ):
            identify(slide, None, lambda: None)
        assert identify(slide, 0.25).scale.um_per_px == 0.25
    done = CliRunner().invoke(app, ["info", str(path)])
    assert "0.1 um/px" in done.output
    assert "0.25 um/px" in done.output


SWAPPED = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def gamma_profile() -> bytes:
    """An sRGB profile whose curves are replaced by a gamma of 1.0: it makes every middle grey lighter."""
    data = bytearray(ICC)
    for i in range(int.from_bytes(data[128:132], "big")):
        entry = 132 + 12 * i
        if data[entry : entry + 4] in (b"rTRC", b"gTRC", b"bTRC"):
            at = int.from_bytes(data[entry + 4 : entry + 8], "big")
            data[at : at + 16] = b"curv" + bytes(4) + (0).to_bytes(4, "big") + bytes(4)
    return bytes(data)


@pytest.mark.parametrize("kind", ["svs", "tif", "strips", "png"])
def test_icc_profile_is_told_ignored_by_default_and_applied_on_request(tmp_path: Path, kind: str) -> None:
    profile = gamma_profile()
    tag = {"extratags": [(34675, 7, len(profile), profile, True)]}
    path = tmp_path / f"a.{kind}"
    if kind == "png":
        png(path, icc_profile=profile)
    elif kind == "strips":
        tifffile.imwrite(path, IMAGE, photometric="rgb", rowsperstrip=16, metadata=None, **tag)
    else:
        aperio(path, **tag) if kind == "svs" else pyramid(path, **tag)
    with open_slide(path) as plain, open_slide(path, settings=ReadSettings(icc="apply")) as applied:
        assert plain.details.icc_profile == applied.details.icc_profile == profile
        assert (plain.icc, applied.icc) == ("ignored", "applied")
        stored, turned = image_of(plain), image_of(applied)
        assert np.abs(stored.astype(int) - IMAGE).mean() < 1.2
        assert turned.mean() > stored.mean() + 10
        assert identify(applied, 0.1).icc == "applied"
    assert Settings().result_settings()["reading"]["icc"] == "ignore", "a result made otherwise is not current"


def test_icc_without_or_with_a_damaged_profile(tmp_path: Path) -> None:
    with open_slide(pyramid(tmp_path / "a.tif"), settings=ReadSettings(icc="apply")) as slide:
        assert slide.icc == "none"
        assert "no ICC profile in the file" in slide.notes[0]
    path = png(tmp_path / "b.png", icc_profile=SWAPPED)
    with pytest.raises(OpenError, match="ICC profile cannot be applied"):
        open_slide(path, settings=ReadSettings(icc="apply"))
    with open_slide(path) as slide:
        assert slide.icc == "ignored"


def test_a_reader_can_be_forced_and_info_tells_which_and_why(tmp_path: Path) -> None:
    path = pyramid(tmp_path / "a.tif")
    with open_slide(path, settings=ReadSettings(reader="tifffile")) as slide:
        assert (slide.reader, slide.why) == ("tifffile", "asked for")
    with pytest.raises(OpenError, match=r"not a scan that can be read \(vmic: is no ZIP archive\)"):
        open_slide(path, settings=ReadSettings(reader="vmic"))
    with pytest.raises(UsageError, match="must be one of auto, "):
        ReadSettings(reader="openslid")
    done = CliRunner().invoke(app, ["info", str(path), "--reader", "tifffile"])
    assert "tifffile" in done.output
    assert "asked for" in done.output
    for line in ("vendor:", "searched at:", "levels:", "objective:", "ICC profile:", "other images:", "TIFF XResolution tag"):
        assert line in done.output


def test_what_no_reader_opens_is_told_with_the_reason_of_each(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    path.write_bytes(b"this is no scan " * 100)
    with pytest.raises(OpenError) as caught:
        open_slide(path)
    message = str(caught.value)
    assert all(f"{reader.name}: " in message for reader in READERS)
    assert "hamamatsu-vms-vmu: " in message, "OpenSlide's own detection says why"
    assert "\n" not in message


def test_a_striped_tiff_is_read_and_its_slowness_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.full((7000, 8000, 3), 200, np.uint8), photometric="rgb", compression="zlib", rowsperstrip=100)
    with open_slide(path) as slide:
        notes = " ".join(slide.notes)
        assert "strips of 8000 x 100 px" in notes
        assert "vips tiffsave" in notes


def zero_table(path: Path, page: int, tiles: list[int]) -> None:
    """Make a TIFF sparse: offsets and byte counts of tiles become 0."""
    with tifffile.TiffFile(path) as tiff:
        tags = tiff.pages[page].tags  # type: ignore[union-attr]
        places = [(tags[name].valueoffset, tags[name].dtype) for name in ("TileOffsets", "TileByteCounts")]
    with path.open("r+b") as file:
        for offset, dtype in places:
            size = {3: 2, 4: 4, 16: 8}[int(dtype)]
            for tile in tiles:
                file.seek(offset + size * tile)
                file.write(bytes(size))


@pytest.mark.parametrize("reader", ["auto", "openslide", "tifffile", "tiled-tiff"])
def test_tiles_that_a_sparse_tiff_leaves_out_are_unscanned(tmp_path: Path, reader: str) -> None:
    path = pyramid(tmp_path / "a.tif")
    zero_table(path, 0, [1, 5])
    with open_slide(path, settings=ReadSettings(reader=reader)) as slide:
        pixels = slide.read_pixels(Box(0, 0, 1024, 768))
        assert (pixels.state[:TILE, TILE : 2 * TILE] == PixelState.UNSCANNED).all()
        assert (pixels.state[TILE : 2 * TILE, TILE : 2 * TILE] == PixelState.UNSCANNED).all()
        assert (pixels.state == PixelState.UNSCANNED).sum() == 2 * TILE * TILE
        assert (pixels.rgb[:TILE, TILE : 2 * TILE] == 255).all()


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_chunks_that_a_zarr_leaves_out_are_unscanned(tmp_path: Path, version: str) -> None:
    path = ome_zarr(tmp_path / "a.zarr", version, skip=(slice(0, TILE), slice(TILE, 2 * TILE)))
    with open_slide(path) as slide:
        pixels = slide.read_pixels(Box(0, 0, 1024, 768))
        assert (pixels.state[:TILE, TILE : 2 * TILE] == PixelState.UNSCANNED).all()
        assert (pixels.state == PixelState.UNSCANNED).sum() == TILE * TILE
        assert (pixels.rgb[:TILE, TILE : 2 * TILE] == 255).all()
        slide.close()
        slide._cache.clear()
        shutil.rmtree(path)
        gone = slide.read_pixels(Box(0, 0, 1024, 768))
        assert (gone.state == PixelState.UNREADABLE).all(), "a folder that vanished is not unscanned"


def test_zarr_in_shards_with_other_codecs(tmp_path: Path) -> None:
    codecs = zarr.codecs.BloscCodec(cname="zstd")
    path = ome_zarr(tmp_path / "a.zarr", shards=(1, 3, 1, 2 * TILE, 2 * TILE), compressors=codecs)
    with open_slide(path) as slide:
        assert np.array_equal(image_of(slide), IMAGE)


def test_one_folder_may_be_one_scan(tmp_path: Path) -> None:
    night = tmp_path / "night"
    night.mkdir()
    paths = [
        ome_zarr(night / "a.zarr"),
        dicom(night / "patient"),
        pyramid(night / "b.tif"),
        vmic(night / "c.vmic"),
        gtif(night / "d.gtif"),
    ]
    paths += [ome_zarr(night / "e.zarr.zip")]
    (night / ".hidden.tif").write_bytes(b"x")
    (night / "notes.txt").write_text("x")
    assert scans_under(night) == sorted(paths)
    assert list_scans([str(night)], tmp_path / "out") == sorted(paths)
    assert list_scans([str(night / "a.zarr")], tmp_path / "out") == [night / "a.zarr"]
    assert list_scans([str(night / "patient")], tmp_path / "out") == [night / "patient"]
    mixed = night / "mixed"
    mixed.mkdir()
    for number, file in enumerate(sorted((night / "patient").iterdir())):
        shutil.copy(file, mixed / f"one-{number}.dcm")
    shutil.copy(night / "b.tif", mixed / "c.tif")
    assert scans_under(mixed) == [mixed / "c.tif", mixed / "one-0.dcm"]
    with open_slide(mixed / "one-0.dcm") as slide:
        assert (slide.size.width, len(slide.levels)) == (1024, 2)


def test_folders_have_fingerprints_of_their_content(tmp_path: Path) -> None:
    path = ome_zarr(tmp_path / "a.zarr")
    copy = tmp_path / "b.zarr"
    shutil.copytree(path, copy)
    assert fingerprint(path) == fingerprint(copy)
    chunk = next(p for p in sorted((copy / "0").rglob("*")) if p.is_file() and p.name != "zarr.json")
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"\x00\x01")
    assert fingerprint(path) != fingerprint(copy)


NAMES = ["with space and 'quotes'.tif", "käse übung 血液.tif", "x" * 240 + ".tif", "two.dots.in.ome.tif"]


@pytest.mark.parametrize("name", NAMES)
def test_names_with_spaces_accents_and_great_length(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "a folder, déjà vu"
    folder.mkdir()
    path = striped(folder / name) if "dots" in name else pyramid(folder / name)
    with open_slide(path) as slide:
        info = identify(slide, None)
        assert np.abs(image_of(slide).astype(int) - IMAGE).mean() < 1.2
    assert len(os.fsencode(info.id)) < 255
    assert info.path == str(path)


def test_read_only_media_links_and_equal_names(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "scan.tif", tmp_path / "b" / "scan.tif"
    for path in (first, second):
        path.parent.mkdir()
    pyramid(first)
    striped(second)
    link = tmp_path / "link.tif"
    link.symlink_to(first)
    first.chmod(stat.S_IRUSR)
    first.parent.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert list_scans([str(first), str(link), str(first)], tmp_path / "out") == [first], "the same file is screened once"
        with open_slide(first) as one, open_slide(second) as other, open_slide(link) as linked:
            assert identify(one, None).id != identify(other, None).id
            assert linked.fingerprint() == one.fingerprint()
    finally:
        first.parent.chmod(stat.S_IRWXU)


@pytest.mark.parametrize("kind", ["tiff", "zarr"])
def test_scans_behind_urls(tmp_path: Path, kind: str) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    local: Any = pyramid(tmp_path / "a.tif") if kind == "tiff" else ome_zarr(tmp_path / "a.zarr")
    store.put(str(local), f"/scans/{local.name}", recursive=True)
    paths = list_scans([f"memory://scans/{local.name}"], tmp_path / "out")
    with open_slide(paths[0]) as slide, open_slide(local) as near:
        assert slide.reader == ("tifffile" if kind == "tiff" else "ome-zarr")
        assert np.abs(image_of(slide).astype(int) - image_of(near)).mean() < 0.2
        info = identify(slide, None)
        assert info.fingerprint == near.fingerprint()
        assert info.id.startswith("a")
        assert info.path.startswith("memory://")
    with pytest.raises(OpenError, match="no such file"):
        open_slide(location("memory://scans/none.tif"))


def test_real_aperio_scan(real_images: Path) -> None:
    with open_slide(real_images / "slides" / "CMU-1-Small-Region.svs") as slide:
        assert (slide.vendor, slide.size.width, slide.size.height) == ("aperio", 2220, 2967)
        assert slide.stated_scale is not None
        assert slide.stated_scale.x == pytest.approx(0.499)
        assert slide.details.objective_power == 20
        assert {"label", "macro"} <= set(slide.details.images)
        pixels = slide.read_pixels(Box(0, 0, 2220, 2967))
        assert (pixels.state == PixelState.SCANNED).all()
    with Image.open(real_images / "slides" / "CMU-1-Small-Region.svs") as image:
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - pixels.rgb).mean() < 1


def test_decoders_give_their_known_answers_and_a_broken_one_stops_the_run() -> None:
    assert [decoder_error(name) for name in ENCODED] == [""] * 4
    require_decoders()
    off = {**DECODERS, "JPEG 2000": lambda data: DECODERS["JPEG 2000"](data)[::-1]}
    assert "differs by" in decoder_error("JPEG 2000", off)
    with pytest.raises(UsageError, match="decoder of JPEG 2000 is broken"):
        require_decoders(off)
    assert "IndexError" in decoder_error("LZW", {"LZW": lambda data: data[10**9]})


def test_readers_can_be_compared_on_tiles_of_a_scan(tmp_path: Path) -> None:
    path = aperio(tmp_path / "a.svs")
    told = dict(compare_readers(path))
    for name in ("openslide", "tifffile"):
        assert re.fullmatch(r"differs by [01]\.\d\d grey levels at most", told[name]), told[name]
    assert told["vmic"] == "does not open it"
    assert "by openslide:" in CliRunner().invoke(app, ["info", str(path), "--compare"]).output
