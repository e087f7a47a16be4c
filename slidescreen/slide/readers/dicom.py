"""DICOM whole-slide images, by wsidicom: a folder of one series, or one of its files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from slidescreen.geometry import Box, Size
from slidescreen.slide.frame_size import require_frame
from slidescreen.slide.location import require_local
from slidescreen.slide.reader import MAX_TILE_PX, Details, block_of, number, require_sizes, scale_of

MARK: Final = b"DICM"
MARK_AT: Final = 128
WSI_CLASS: Final = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""SOP class "VL Whole Slide Microscopy Image Storage"."""


def _pydicom() -> Any:
    """The pydicom package, loaded where there is DICOM, told to take files as they are: it would warn of each oddity."""
    import pydicom
    import pydicom.config

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    return pydicom


def is_dicom(path: Path) -> bool:
    """Whether a file starts as DICOM files do."""
    with path.open("rb") as file:
        return file.read(MARK_AT + len(MARK))[MARK_AT:] == MARK


def series_in(folder: Path) -> list[list[Path]]:
    """The DICOM files right in a folder, grouped by series, in order; [] where there are none."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            series = _series_of(path)
            if series is not None:
                groups.setdefault(series, []).append(path)
    return list(groups.values())


def _series_of(path: Path) -> str | None:
    try:
        if not is_dicom(path):
            return None
    except OSError:
        return None
    pydicom = _pydicom()
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID", "SOPClassUID"])
    except (OSError, pydicom.errors.InvalidDicomError, ValueError, NotImplementedError, KeyError, AttributeError, EOFError):
        return None
    return str(header.SeriesInstanceUID) if header.get("SOPClassUID") == WSI_CLASS and "SeriesInstanceUID" in header else None


def files_of(path: Path) -> list[Path]:
    """All files of the scan that a folder holds or a file is part of. Raises ValueError where that is none, or unclear."""
    require_local(path)
    if path.is_dir():
        groups = series_in(path)
        if len(groups) != 1:
            raise ValueError(
                f"the folder holds {len(groups)} DICOM whole-slide series; name one of its files" if groups else "no DICOM"
            )
        return groups[0]
    series = _series_of(path)
    if series is None:
        raise ValueError("is no DICOM whole-slide image")
    return [p for p in sorted(path.parent.iterdir()) if p.suffix == path.suffix and p.is_file() and _series_of(p) == series]


class DicomReader:
    """wsidicom: JPEG, JPEG 2000, HTJ2K, JPEG-LS, JPEG XL, RLE and uncompressed whole-slide DICOM."""

    name = "wsidicom"
    shared = False
    vendor = "dicom"

    def __init__(self, path: Path) -> None:
        files = files_of(path)
        _pydicom()
        from wsidicom import WsiDicom  # takes a second to import: only where there is DICOM

        self._slide = WsiDicom.open(files)
        try:
            self._levels = list(self._slide.levels)
            for level in self._levels:
                _require_rgb(level)
            self.sizes = tuple(Size(v.size.width, v.size.height) for v in self._levels)
            require_sizes(self.sizes)
            spacing = self._levels[0].pixel_spacing
            self.stated_scale = scale_of(spacing.width, spacing.height, "DICOM PixelSpacing", 1e3) if spacing else None
            dataset = self._levels[0].default_instance.dataset
            images = [("label", self._slide.labels), ("macro", self._slide.overviews)]
            self.details = Details(*_optics(dataset), tuple(name for name, found in images if found))
        except BaseException:
            self.close()
            raise

    def block(self, level: int) -> Size:
        tile = self._levels[level].tile_size
        return block_of(tile.width, tile.height, self.sizes[level])

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        own = self._levels[level]
        self._require_frames(own, box)
        image = self._slide.read_region((box.x, box.y), own.level, (box.width, box.height))
        pixels = np.asarray(image.convert("RGB"))
        absent = self._absent(own, box)
        return pixels if absent is None else np.dstack([pixels, np.where(absent, 0, 255).astype(np.uint8)])

    def _require_frames(self, level: Any, box: Box) -> None:
        """Raise ValueError where a frame's image claims to be larger than the frame: its decoder would make room for it."""
        from wsidicom.geometry import Point

        data, tile = level.default_instance.image_data, level.tile_size
        for row in range(box.y // tile.height, (box.bottom - 1) // tile.height + 1):
            for column in range(box.x // tile.width, (box.right - 1) // tile.width + 1):
                place = (Point(column, row), data.default_z, data.default_path)
                if not data.is_sparse(*place):
                    require_frame(data.get_encoded_tile(*place), tile.width, tile.height)

    def _absent(self, level: Any, box: Box) -> NDArray[np.bool_] | None:
        """(h, w) bool: where a sparse file has no frame; None where it has all."""
        from wsidicom.geometry import Point

        data, tile = level.default_instance.image_data, level.tile_size
        absent = np.zeros((box.height, box.width), np.bool_)
        for row in range(box.y // tile.height, (box.bottom - 1) // tile.height + 1):
            for column in range(box.x // tile.width, (box.right - 1) // tile.width + 1):
                if data.is_sparse(Point(column, row), data.default_z, data.default_path):
                    top, left = row * tile.height - box.y, column * tile.width - box.x
                    absent[max(0, top) : top + tile.height, max(0, left) : left + tile.width] = True
        return absent if absent.any() else None

    def close(self) -> None:
        self._slide.close()


def _require_rgb(level: Any) -> None:
    data, tile = level.default_instance.image_data, level.tile_size
    if data.samples_per_pixel != 3 or data.bits != 8:
        raise ValueError(f"not an 8-bit RGB image ({data.samples_per_pixel} x {data.bits} bit)")
    if tile.width * tile.height > MAX_TILE_PX:
        raise ValueError(f"frames of {tile.width} x {tile.height} px are too large to decode")


def _optics(dataset: Any) -> tuple[float | None, bytes | None]:
    """Objective power and ICC profile of the first optical path."""
    paths: Iterable[Any] = dataset.get("OpticalPathSequence") or ()
    for path in paths:
        profile = path.get("ICCProfile")
        return number(path.get("ObjectiveLensPower")), bytes(profile) if profile else None
    return None, None
