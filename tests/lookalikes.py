"""Small files of every format that is read, written as the formats' public descriptions say; used by tests and the fuzzer.

All show the same image, `IMAGE`, at 0.1 um/px, with x40 where the format has room for it. Vendor formats count as such when
stock OpenSlide names the vendor. None holds a single byte of a real scan.
"""

from __future__ import annotations

import io
import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image, ImageCms

UM_PER_PX = 0.1
WIDTH, HEIGHT, TILE = 1024, 768, 256
PER_CM = (1e4 / UM_PER_PX, 1e4 / UM_PER_PX)
Rgb = NDArray[np.uint8]


def _image() -> Rgb:
    rng = np.random.default_rng(7)
    coarse = rng.integers(60, 250, (13, 17, 3), np.uint8)
    return np.asarray(cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC), np.uint8)


IMAGE: Rgb = _image()
HALF: Rgb = np.asarray(cv2.resize(IMAGE, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.uint8)
ICC: bytes = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
JPEG: dict[str, Any] = {"compression": "jpeg", "compressionargs": {"level": 92}}
TILED: dict[str, Any] = {"tile": (TILE, TILE), "photometric": "rgb", "metadata": None, **JPEG}


def jpeg(pixels: Rgb, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=92, **options)
    return out.getvalue()


def aperio(path: Path, compression: dict[str, Any] = JPEG, words: str = "JPEG/RGB Q=92", **options: Any) -> Path:
    head = "Aperio Image Library v11.2.1\r\n"
    said = f"{head}{WIDTH}x{HEIGHT} [0,0 {WIDTH}x{HEIGHT}] (256x256) {words}|AppMag = 40|MPP = {UM_PER_PX:.4f}"
    tiled = {**TILED, **compression}
    with tifffile.TiffWriter(path, bigtiff=False) as tiff:
        tiff.write(IMAGE, description=said, software=None, **tiled, **options)
        flat: dict[str, Any] = {"photometric": "rgb", "metadata": None, "software": None, "compression": "jpeg"}
        tiff.write(HALF[::2, ::2], description=f"{head}thumb", rowsperstrip=16, **flat)
        tiff.write(HALF, description=f"{head}{WIDTH}x{HEIGHT} -> 512x384 - {words}", software=None, **tiled)
        for name, kind in (("label", 1), ("macro", 9)):
            text = f"{head}{name} 100x80"
            tiff.write(HALF[:80, :100], description=text, rowsperstrip=16, subfiletype=kind, **flat)
    return path


def aperio_jpeg2000(path: Path) -> Path:
    return aperio(path, {"compression": "APERIO_JP2000_RGB", "compressionargs": {"level": 80}}, "J2K/KDU Q=80")


def leica(path: Path) -> Path:
    nm, gap = int(UM_PER_PX * 1000), 12_800
    across, down = WIDTH * nm, HEIGHT * nm
    dimensions = (
        f'<dimension ifd="0" sizeX="{WIDTH}" sizeY="{HEIGHT}" r="0"/><dimension ifd="1" sizeX="512" sizeY="384" r="1"/>'
    )
    light = "<illuminationSettings><illuminationSource>brightfield</illuminationSource></illuminationSettings>"
    text = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection name="look-alike" sizeX="{across + 2 * gap}" sizeY="{down + 2 * gap}"><image name="main">'
        f'<device model="SCN400"/><pixels sizeX="{WIDTH}" sizeY="{HEIGHT}">{dimensions}</pixels>'
        f'<view sizeX="{across}" sizeY="{down}" offsetX="{gap}" offsetY="{gap}"/>'
        f"<scanSettings><objectiveSettings><objective>40</objective></objectiveSettings>{light}</scanSettings></image>"
        f'<image name="macro"><pixels sizeX="512" sizeY="384"><dimension ifd="2" sizeX="512" sizeY="384" r="0"/></pixels>'
        f'<view sizeX="{across + 2 * gap}" sizeY="{down + 2 * gap}" offsetX="0" offsetY="0"/>'
        f"<scanSettings>{light}</scanSettings></image></collection></scn>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(IMAGE, description=text, resolution=PER_CM, resolutionunit=3, **TILED)
        tiff.write(HALF, resolution=(PER_CM[0] / 2,) * 2, resolutionunit=3, **TILED)
        tiff.write(HALF, resolution=(1000, 1000), resolutionunit=3, **TILED)
    return path


def philips(path: Path) -> Path:
    def attribute(name: str, value: str) -> str:
        return f'<Attribute Name="{name}" Group="0x0028" Element="0x0030" PMSVR="IString">{value}</Attribute>'

    def spacing(um: float) -> str:
        return attribute("DICOM_PIXEL_SPACING", f"&quot;{um / 1000:.8f}&quot; &quot;{um / 1000:.8f}&quot;")

    levels = "".join(
        f'<DataObject ObjectType="PixelDataRepresentation">{spacing(UM_PER_PX * 2**i)}'
        f"{attribute('PIIM_PIXEL_DATA_REPRESENTATION_NUMBER', str(i))}</DataObject>"
        for i in range(2)
    )
    scan = (
        f'<DataObject ObjectType="DPScannedImage">{attribute("PIM_DP_IMAGE_TYPE", "WSI")}{spacing(UM_PER_PX)}'
        f"{attribute('DICOM_DERIVATION_DESCRIPTION', 'tiff-useBigTIFF=1-useRgb=0-levels=40,10002,10000')}"
        f'<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE" Group="0x1001" Element="0x8B01" PMSVR="IDataObjectArray">'
        f"<Array>{levels}</Array></Attribute></DataObject>"
    )
    text = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        '<Attribute Name="DICOM_MANUFACTURER" Group="0x0008" Element="0x0070" PMSVR="IString">PHILIPS</Attribute>'
        '<Attribute Name="PIM_DP_SCANNED_IMAGES" Group="0x301D" Element="0x1003" PMSVR="IDataObjectArray">'
        f"<Array>{scan}</Array></Attribute></DataObject>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(IMAGE, description=text, software="Philips DP v1.0", **TILED)
        tiff.write(HALF, software="Philips DP v1.0", subfiletype=1, **TILED)
        macro = {"photometric": "rgb", "metadata": None, "compression": "jpeg", "rowsperstrip": 80}
        tiff.write(HALF[:80, :100], description="Macro", software="Philips DP v1.0", subfiletype=1, **macro)
    return path


def ventana(path: Path) -> Path:
    columns, rows = WIDTH // TILE, HEIGHT // TILE
    joints = []
    for row in range(rows):  # rows are numbered from the bottom, in serpentines
        for column in range(columns):
            number = row * columns + (column if row % 2 == 0 else columns - 1 - column) + 1
            right = number + (1 if row % 2 == 0 else -1)
            up = (row + 1) * columns + (column if row % 2 == 1 else columns - 1 - column) + 1
            if column + 1 < columns:
                joints.append((number, right, "RIGHT"))
            if row + 1 < rows:
                joints.append((number, up, "UP"))
    joined = "".join(
        f'<TileJointInfo FlagJoined="1" Confidence="99" Direction="{d}" Tile1="{a}" Tile2="{b}" OverlapX="0" OverlapY="0"/>'
        for a, b, d in joints
    )
    scan = f'<iScan Magnification="40" ScanRes="{UM_PER_PX}" Z-layers="1" UnitNumber="1"></iScan>'
    encode = (
        f'<EncodeInfo Ver="2"><SlideStitchInfo><ImageInfo AOIScanned="1" AOIIndex="0" Width="{TILE}" Height="{TILE}" '
        f'NumRows="{rows}" NumCols="{columns}" Pos-X="0" Pos-Y="0">{joined}</ImageInfo></SlideStitchInfo>'
        '<AoiOrigin><AOI0 OriginX="0" OriginY="0"/></AoiOrigin></EncodeInfo>'
    )

    def xmp(text: str) -> list[tuple[int, int, int, bytes, bool]]:
        return [(700, 1, len(text), text.encode(), True)]

    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        label = {"photometric": "rgb", "metadata": None, "rowsperstrip": 40, "compression": "jpeg"}
        tiff.write(HALF[:80, :100], description="Label Image", extratags=xmp(scan), **label)
        tiff.write(IMAGE, description="level=0 mag=40 quality=95", extratags=xmp(encode), **TILED)
        tiff.write(HALF, description="level=1 mag=20 quality=95", **TILED)
    return path


def trestle(path: Path) -> Path:
    text = "Background Color=FFFFFF;White Balance=ff;Objective Power=40;JPEG Quality=92;OverlapsXY= 0 0 0 0"
    with tifffile.TiffWriter(path, bigtiff=False) as tiff:
        tiff.write(IMAGE, description=text, software="MedScan", resolution=(UM_PER_PX,) * 2, **TILED)
        tiff.write(HALF, software="MedScan", resolution=(2 * UM_PER_PX,) * 2, **TILED)
    return path


def hamamatsu_ndpi(path: Path) -> Path:
    """NDPI: classic TIFF whose pointers to the next directory, and whose values, have 64 bits."""
    out = io.BytesIO(b"II*\0" + bytes(8))
    out.seek(0, io.SEEK_END)
    pages = [(IMAGE, 40.0), (HALF, 20.0), (HALF[:80, :96], -1.0)]
    link = 4
    for pixels, lens in pages:
        data_at = out.tell()
        data = jpeg(pixels, restart_marker_blocks=max(1, pixels.shape[1] // 64), subsampling=1)
        out.write(data + bytes(-len(data) % 4))
        height, width = pixels.shape[:2]
        um = UM_PER_PX * WIDTH / width
        floats = {65421: lens}
        rational_at = out.tell()
        out.write(struct.pack("<II", round(1e4 / um), 1))
        make_at = out.tell()
        out.write(b"Hamamatsu\0\0\0" + struct.pack("<HHHH", 8, 8, 8, 0))
        entries = [
            *[(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, make_at + 12), (259, 3, 1, 7), (262, 3, 1, 6)],
            *[(271, 2, 10, make_at), (273, 4, 1, data_at), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, len(data))],
            *[(282, 5, 1, rational_at), (283, 5, 1, rational_at), (296, 3, 1, 3)],
            *[(65420, 4, 1, 1), (65421, 11, 1, 0), (65422, 9, 1, 0), (65423, 9, 1, 0), (65424, 9, 1, 0)],
        ]
        ifd_at = out.tell()
        out.write(struct.pack("<H", len(entries)))
        for tag, kind, count, value in entries:
            packed = struct.pack("<f", floats[tag]) if kind == 11 else struct.pack("<I", value)
            out.write(struct.pack("<HHI", tag, kind, count) + packed)
        following = out.tell()
        out.write(bytes(8) + bytes(4 * len(entries)))
        out.seek(link)
        out.write(struct.pack("<Q", ifd_at))
        out.seek(0, io.SEEK_END)
        link = following
    path.write_bytes(out.getvalue())
    return path


def hamamatsu_vms(path: Path) -> Path:
    stem = path.stem
    for name, pixels in (("image", IMAGE), ("map", HALF[::4, ::4]), ("macro", HALF[:80, :96])):
        (path.parent / f"{stem}_{name}.jpg").write_bytes(
            jpeg(pixels, restart_marker_blocks=max(1, pixels.shape[1] // 64), subsampling=1)
        )
    lines = {
        **{"NoLayers": 1, "NoJpegColumns": 1, "NoJpegRows": 1, "ImageFile": f"{stem}_image.jpg", "MapFile": f"{stem}_map.jpg"},
        **{"MacroImage": f"{stem}_macro.jpg", "PhysicalWidth": round(WIDTH * UM_PER_PX * 1000), "SourceLens": 40},
        "PhysicalHeight": round(HEIGHT * UM_PER_PX * 1000),
    }
    path.write_text("[Virtual Microscope Specimen]\n" + "".join(f"{k}={v}\n" for k, v in lines.items()), encoding="ascii")
    return path


def mirax(path: Path) -> Path:
    """MIRAX: a file of any content beside a folder of its name with Slidedat.ini, an index and data files."""
    slide_id, columns, rows = "A" * 32, WIDTH // TILE, HEIGHT // TILE
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    path.write_bytes(jpeg(HALF[:80, :96]))
    data = io.BytesIO()
    data.write(b"01.02" + slide_id.encode() + bytes(16))
    entries = []
    for row in range(rows):
        for column in range(columns):
            tile = jpeg(IMAGE[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE])
            entries.append((row * columns + column, data.tell(), len(tile), 0))
            data.write(tile)
    (folder / "Data0000.dat").write_bytes(data.getvalue())
    head = b"01.02" + slide_id.encode()
    hier_root = len(head) + 8
    level_record, page = hier_root + 4, hier_root + 12
    pages = struct.pack("<ii", 0, page)
    index = head + struct.pack("<ii", hier_root, hier_root) + struct.pack("<i", level_record) + pages
    index += struct.pack("<ii", len(entries), 0) + b"".join(struct.pack("<iiii", *entry) for entry in entries)
    (folder / "Index.dat").write_bytes(index)
    general = {"SLIDE_VERSION": "01.02", "SLIDE_ID": slide_id, "IMAGENUMBER_X": columns, "IMAGENUMBER_Y": rows}
    general |= {"OBJECTIVE_MAGNIFICATION": 40, "CameraImageDivisionsPerSide": 1}
    hierarchical = {"HIER_COUNT": 1, "NONHIER_COUNT": 0, "INDEXFILE": "Index.dat", "HIER_0_NAME": "Slide zoom level"}
    hierarchical |= {"HIER_0_COUNT": 1, "HIER_0_VAL_0": "ZoomLevel_0", "HIER_0_VAL_0_SECTION": "LAYER_0_LEVEL_0_SECTION"}
    layer = {"OVERLAP_X": 0, "OVERLAP_Y": 0, "MICROMETER_PER_PIXEL_X": UM_PER_PX, "MICROMETER_PER_PIXEL_Y": UM_PER_PX}
    layer |= {"IMAGE_FORMAT": "JPEG", "IMAGE_FILL_COLOR_BGR": 16777215, "DIGITIZER_WIDTH": TILE, "DIGITIZER_HEIGHT": TILE}
    layer |= {"IMAGE_CONCAT_FACTOR": 0}
    sections = {"GENERAL": general, "HIERARCHICAL": hierarchical, "DATAFILE": {"FILE_COUNT": 1, "FILE_0": "Data0000.dat"}}
    text = ""
    for name, values in {**sections, "LAYER_0_LEVEL_0_SECTION": layer}.items():
        text += f"[{name}]\n" + "".join(f"{k} = {v}\n" for k, v in values.items())
    (folder / "Slidedat.ini").write_text(text, encoding="utf-8")
    return path


def pyramid(path: Path, **options: Any) -> Path:
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(IMAGE, resolution=PER_CM, resolutionunit=3, **{**TILED, **options})
        tiff.write(HALF, subfiletype=1, resolution=(PER_CM[0] / 2,) * 2, resolutionunit=3, **TILED)
    return path


def ome_tiff(path: Path) -> Path:
    meta = {"axes": "YXS", "PhysicalSizeX": 100, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 100, "PhysicalSizeYUnit": "nm"}
    tiled = {**TILED, "metadata": meta}
    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as tiff:
        tiff.write(IMAGE, subifds=1, **tiled)
        tiff.write(HALF, subfiletype=1, **{**TILED, "metadata": None})
    return path


def flat_tiled(path: Path) -> Path:
    tifffile.imwrite(path, IMAGE, resolution=PER_CM, resolutionunit=3, **TILED)
    return path


def striped(path: Path) -> Path:
    options: dict[str, Any] = {"photometric": "rgb", "rowsperstrip": 16, "compression": "lzw", "metadata": None}
    tifffile.imwrite(path, IMAGE, resolution=PER_CM, resolutionunit=3, **options)
    return path


def gtif(path: Path) -> Path:
    said = json.dumps({"mpp": UM_PER_PX, "objective-power": 40, "magnification": 40})
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(IMAGE, description=said, **TILED)
        tiff.write(HALF, subfiletype=1, **TILED)
    return path


def vmic(
    path: Path, config: str = "", image: str = "", tiles: dict[str, bytes] | None = None, inner: str = "Image.vmici"
) -> Path:
    pyramid_xml = image or (
        f'<?xml version="1.0"?><Image TileSize="{TILE}" Overlap="0" Format="jpg" xmlns="http://schemas.microsoft.com/deepzoom/2009">'
        f'<Size Width="{WIDTH}" Height="{HEIGHT}"/></Image>'
    )
    osc = config or (
        '<?xml version="1.0"?><ObjectScanConfig xmlns="urn:vmic"><Objective><Magnification>40</Magnification>'
        f"<PixelPerMicron>{1 / UM_PER_PX:g}</PixelPerMicron></Objective></ObjectScanConfig>"
    )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("dzc_output.xml", pyramid_xml)
        pixels = IMAGE
        for level in range(10, 7, -1):
            for row in range(-(-pixels.shape[0] // TILE)):
                for column in range(-(-pixels.shape[1] // TILE)):
                    tile = pixels[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
                    name = f"dzc_output_files/{level}/{column}_{row}.jpg"
                    archive.writestr(name, (tiles or {}).get(name, jpeg(tile)))
            pixels = np.asarray(cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.uint8)
    with zipfile.ZipFile(path, "w") as outer:
        outer.writestr(inner, packed.getvalue())
        outer.writestr("VMCF/config.osc", osc)
        outer.writestr("VMCF/overview.jpg", jpeg(HALF[:80, :100]))
    return path


def ome_zarr(path: Path, version: str = "0.5", *, skip: tuple[slice, slice] | None = None, **options: Any) -> Path:
    """A folder, or with the suffix .zip an archive. `skip`: part of the finest level that is not written."""
    folder = path.with_suffix(".tmp") if path.suffix == ".zip" else path
    zarr_format: Any = {"0.4": 2, "0.5": 3}[version]
    group = zarr.open_group(zarr.storage.LocalStore(folder), mode="w", zarr_format=zarr_format)
    datasets = []
    for level, pixels in enumerate((IMAGE, HALF)):
        shape = (1, 3, 1, *pixels.shape[:2])
        array = group.create_array(str(level), shape=shape, chunks=(1, 3, 1, TILE, TILE), dtype="uint8", **options)
        content = pixels.transpose(2, 0, 1)[None, :, None].copy()
        if skip and level == 0:
            content[:, :, :, skip[0], skip[1]] = 0
        array[:] = content
        scale = [1.0, 1.0, 1.0, UM_PER_PX * 2**level, UM_PER_PX * 2**level]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    space = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    axes = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}, *space]
    image: dict[str, Any] = {"axes": axes, "datasets": datasets, "name": "look-alike"}
    if version == "0.4":
        group.attrs["multiscales"] = [{**image, "version": "0.4"}]
    else:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    if folder != path:
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(p for p in folder.rglob("*") if p.is_file()):
                archive.write(file, file.relative_to(folder).as_posix())
        shutil.rmtree(folder)
    return path


def dicom(path: Path, encoding: Any = None, **options: Any) -> Path:
    """A folder with one file a level. `encoding`: settings of wsidicom; JPEG by default."""
    from wsidicomizer import WsiDicomizer

    source = path.parent / f"{path.name}.source.tif"
    pyramid(source)
    path.mkdir()
    WsiDicomizer.convert(source, output_path=path, tile_size=TILE, encoding=encoding, workers=1, **options)
    source.unlink()
    for number, file in enumerate(sorted(path.iterdir())):
        file.rename(path / f"level-{number}.dcm")
    return path


def png(path: Path, **options: Any) -> Path:
    Image.fromarray(IMAGE).save(path, **options)
    return path


FORMATS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "aperio": ("a.svs", aperio),
    "aperio-jpeg2000": ("a.svs", aperio_jpeg2000),
    "hamamatsu-ndpi": ("a.ndpi", hamamatsu_ndpi),
    "hamamatsu-vms": ("a.vms", hamamatsu_vms),
    "leica": ("a.scn", leica),
    "mirax": ("a.mrxs", mirax),
    "philips": ("a.tiff", philips),
    "trestle": ("a.tif", trestle),
    "ventana": ("a.bif", ventana),
    "pyramid": ("a.tif", pyramid),
    "ome-tiff": ("a.ome.tif", ome_tiff),
    "flat-tiled": ("a.tif", flat_tiled),
    "striped": ("a.tif", striped),
    "gtif": ("a.gtif", gtif),
    "vmic": ("a.vmic", vmic),
    "ome-zarr-0.4": ("a.zarr", lambda path: ome_zarr(path, "0.4")),
    "ome-zarr-0.5": ("a.zarr", lambda path: ome_zarr(path, "0.5")),
    "ome-zarr-zip": ("a.zarr.zip", ome_zarr),
    "dicom": ("a", dicom),
    "png": ("a.png", png),
    "jpeg": ("a.jpg", lambda path: png(path, quality=95)),
}
"""Name -> (file name, writer)."""
