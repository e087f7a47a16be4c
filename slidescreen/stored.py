"""Folder -> SlideResult: what was stored is read back; what killed runs left is cleaned up; is a result current?"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import cv2
import numpy as np
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray

from slidescreen.errors import ResultError
from slidescreen.geometry import Box, Point, Size
from slidescreen.records import (
    Audit,
    Cell,
    Differential,
    Explanations,
    Fraction,
    ModelInfo,
    Outline,
    Overview,
    Quality,
    RulerReading,
    Scale,
    ScaleCheck,
    ScreenedCell,
    SlideInfo,
    SlideResult,
)
from slidescreen.store import (
    AREAS,
    CELLS_GEOJSON,
    CELLS_PARQUET,
    EXPLANATIONS,
    OVERVIEW,
    PATCHES,
    REPORT,
    SCHEMA,
    SCREENED_BIT,
    SUMMARY,
)
from slidescreen.taxonomy import CODES

NO_PATCHES: Final = "its pictures of cells were not kept (--no-patches)"


def load_result(folder: Path) -> SlideResult:
    """A stored result as it was written: positions to 0.1 px, probabilities to six digits, the overview as a JPEG.

    Raises ResultError when a file is missing, damaged, or of another version's schema.
    """
    try:
        found = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        if found.get("schema") != SCHEMA:
            raise ResultError(f"{folder}: stored by another version (schema {found.get('schema')}); screen the slide again")
        return _result(folder, found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultError(f"{folder}: cannot be read back ({_said(error)}); screen the slide again") from error


def load_patches(folder: Path) -> zarr.Array[Any]:
    """(n, 400, 400, 3) uint8, row for row as the result's cells. Raises ResultError where they were not kept."""
    if not (folder / PATCHES).is_dir():
        raise ResultError(f"{folder}: {NO_PATCHES}; the page stays as it is")
    return zarr.open_array(folder / PATCHES, mode="r")


def load_explanations(folder: Path) -> Explanations | None:
    """The maps of a result folder; None where it has none."""
    if not (folder / EXPLANATIONS).is_dir():
        return None
    array = zarr.open_array(folder / EXPLANATIONS, mode="r")
    kept: Any = dict(array.attrs)
    maps = {int(number) - 1: np.asarray(array[i], np.uint8) for i, number in enumerate(kept["cell_id"])}
    return Explanations(str(kept["method"]), str(kept["target"]), maps)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _result(folder: Path, found: Mapping[str, Any]) -> SlideResult:
    classes = tuple(found["model"]["classes"])
    s, check = found["slide"], found["scale_check"]
    reading = None
    if check["interval"]:
        reading = RulerReading(check["ruler_um_per_px"], check["interval"][0], check["interval"][1], check["cells"])
    return SlideResult(
        slide=SlideInfo(
            path=s["path"],
            id=s["id"],
            vendor=s["vendor"],
            size=Size(s["width_px"], s["height_px"]),
            scale=Scale(s["um_per_px"], s["um_per_px_source"]),
            fingerprint=s["fingerprint"],
            reader=s["reader"],
            wanted_scale=s["um_per_px_wanted"],
            icc=s["icc"],
        ),
        model=ModelInfo(**(found["model"] | {"classes": classes})),
        area_mm2=found["area_mm2"],
        cells=tuple(_cells(folder, classes)),
        differential=_differential(found),
        overview=_overview(folder, found["overview_downsample"]),
        settings=found["settings"],
        version=found["version"],
        created=found["created"],
        device=found["device"],
        timings_s=found["timings_s"],
        waiting_s=found["waiting_s"],
        warnings=tuple(found["warnings"]),
        scale_check=ScaleCheck(check["status"], reading),
        audit=Audit(**found["audit"]),
        quality=Quality(**found["quality"]),
    )


def _differential(found: Mapping[str, Any]) -> Differential:
    limits = found["differential_percent_ci95"]
    return Differential(
        counts=found["counts"],
        leukocytes=found["leukocytes"],
        percent=found["differential_percent"],
        percent_ci95={k: (v[0], v[1]) if v else None for k, v in limits.items()},
        blast=fraction(found["blast"]),
        atypical=fraction(found["atypical"]),
        nrbc_per_100_wbc=found["nrbc_per_100_wbc"],
        smudge_per_100_wbc=found["smudge_per_100_wbc"],
    )


def fraction(stored: Mapping[str, Any]) -> Fraction:
    """A fraction of `summary.json`."""
    limits = stored["ci95"]
    return Fraction(
        count=stored["count"],
        total=stored["of"],
        threshold=stored["threshold"],
        fraction=stored["fraction"],
        ci95=(limits[0], limits[1]) if limits else None,
        mean_probability=stored["mean_probability"],
    )


def _overview(folder: Path, downsample: float) -> Overview:
    image = _picture(folder / OVERVIEW, cv2.IMREAD_COLOR_RGB)
    areas = _picture(folder / AREAS, cv2.IMREAD_GRAYSCALE)
    return Overview(image, areas & ~np.uint8(SCREENED_BIT), (areas & SCREENED_BIT) > 0, downsample)


def _picture(path: Path, flags: int) -> NDArray[np.uint8]:
    content = np.frombuffer(path.read_bytes(), np.uint8)
    picture = cv2.imdecode(content, flags) if len(content) else None
    if picture is None:
        raise ValueError(f"{path.name} is damaged")
    return np.asarray(picture, np.uint8)


def _cells(folder: Path, classes: tuple[str, ...]) -> Iterator[ScreenedCell]:
    columns = [f"p_{code}" for code in classes]
    if sorted(classes) != sorted(CODES):
        raise ValueError("its classes are not the 15 of this version")
    outlines = _outlines(folder / CELLS_GEOJSON)
    with pq.ParquetFile(folder / CELLS_PARQUET) as file:
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                outline = next(outlines, None)
                if outline is None:
                    raise ValueError(f"{CELLS_GEOJSON} holds fewer cells than {CELLS_PARQUET}")
                yield _cell(row, columns, outline)


def _cell(row: Mapping[str, Any], columns: list[str], outline: Outline) -> ScreenedCell:
    box = Box(row["xmin_px"], row["ymin_px"], row["xmax_px"] - row["xmin_px"], row["ymax_px"] - row["ymin_px"])
    asked = row[columns[0]] is not None
    reason = row["reason"] or ""
    cell = Cell(
        centre=Point(row["x_px"], row["y_px"]),
        box=box,
        nucleus_um2=row["nucleus_um2"],
        edge=row["status"] == "edge",
        refusal="" if asked else reason,
        outline=outline if row["area_um2"] is not None else (),
        area_um2=row["area_um2"],
        eccentricity=row["eccentricity"],
        focus=row["focus"],
    )
    return ScreenedCell(
        id=row["cell_id"],
        cell=cell,
        status=row["status"],
        label=row["label"] or "",
        probabilities=np.array([row[c] for c in columns], np.float32) if asked else None,
        p_blast=row["p_blast"],
        p_atypical=row["p_atypical"],
        reason=reason,
        outlier=row["outlier"],
        agreement=row["agreement"],
    )


def _outlines(path: Path) -> Iterator[Outline]:
    """The ring of each feature, one a line, without the corner that closes it."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.startswith('{"type": "Feature",'):
                ring = json.loads(line.rstrip(",\n"))["geometry"]["coordinates"][0]
                yield tuple(Point(x, y) for x, y in ring[:-1])


def clean_up(out: Path, slide_id: str) -> None:
    """Undo what a killed run of this host left of this slide: remove half results, put a moved-aside result back."""
    old = out / f".{slide_id}.old"
    if old.is_dir():
        if (out / slide_id).exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(out / slide_id)
    prefix = f".{slide_id}.partial-{socket.gethostname()}-"
    for entry in list(out.iterdir()) if out.is_dir() else []:
        pid = entry.name.removeprefix(prefix)
        if entry.name.startswith(prefix) and pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(entry, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()


def sweep(out: Path, slide_ids: Collection[str] | None = None) -> int:
    """Undo what killed runs left of these slides, or of all: for who holds the lock of the folder, so that nobody else is
    writing there. Returns the number of half results removed or put back."""
    number = 0
    for entry in sorted(out.iterdir()) if out.is_dir() else []:
        name, partial, _ = entry.name.rpartition(".partial-")
        name, old = (name, False) if partial else (entry.name.removesuffix(".old"), entry.name.endswith(".old"))
        slide = name.removeprefix(".")
        if not name.startswith(".") or not (partial or old) or (slide_ids is not None and slide not in slide_ids):
            continue
        number += 1
        if old and not (out / slide).exists():
            entry.rename(out / slide)
        elif entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    return number


def same_request(
    found: Mapping[str, Any],
    *,
    fingerprint: str,
    wanted_scale: float | Literal["auto"] | None,
    model: str,
    settings: Mapping[str, Any],
) -> bool:
    """Whether a stored summary is of the same scan, asked for at the same scale, by the same model (its `identity`) and
    settings, and of this version's `SCHEMA`."""
    try:
        return bool(
            found["slide"]["fingerprint"] == fingerprint
            and found["slide"]["um_per_px_wanted"] == wanted_scale
            and found["model"]["identity"] == model
            and found["settings"] == json.loads(json.dumps(settings))
            and found["schema"] == SCHEMA
        )
    except (KeyError, TypeError):
        return False


def is_current(
    folder: Path,
    *,
    fingerprint: str,
    wanted_scale: float | Literal["auto"] | None,
    model: str,
    settings: Mapping[str, Any],
) -> bool:
    """Whether the folder holds a whole result of this request; see `same_request`."""
    try:
        found = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    same = same_request(found, fingerprint=fingerprint, wanted_scale=wanted_scale, model=model, settings=settings)
    return same and (folder / REPORT).is_file()
