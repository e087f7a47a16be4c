"""Scans in a folder. One scan may be a folder itself: OME-Zarr, or the files of a DICOM series."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from slidescreen.slide.readers.dicom import series_in
from slidescreen.slide.readers.omezarr import is_zarr

SCAN_SUFFIXES: Final = frozenset(
    {
        *(".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".bif", ".svslide", ".ptif"),
        *(".vmic", ".gtif", ".dcm", ".zarr", ".zarr.zip", ".ozx"),
    }
)
"""What a folder is searched for; a file named on the command line is tried whatever its name."""
RESULT: Final = frozenset({"summary.json", "cells.csv", "report.html"})
"""A folder that holds these is the result of a scan, whose patches lie in Zarr too."""
DICOM_SUFFIXES: Final = ("", ".dcm")


def scans_under(folder: Path) -> list[Path]:
    """The scans in a folder and the folders below, in order; the folder itself where it is one scan. Hidden ones and results of
    screening are left out, and links to folders are not followed."""
    found: list[Path] = []
    for name, folders, files in os.walk(folder):
        here = Path(name)
        if RESULT.issubset(files):
            folders.clear()
            continue
        if is_zarr(here):
            found.append(here)
            folders.clear()
            continue
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        paths = [here / file for file in files if not file.startswith(".")]
        found += [p for p in paths if _is_scan_file(p)]
        if any(p.suffix.lower() in DICOM_SUFFIXES for p in paths):
            groups = series_in(here)
            whole = len(groups) == 1 and len(groups[0]) == len(paths)
            found += [here] if whole else [group[0] for group in groups]
    return sorted(found)


def _is_scan_file(path: Path) -> bool:
    name = path.name.lower()
    return name.endswith(tuple(SCAN_SUFFIXES - {".dcm", ".zarr"})) and path.is_file()
