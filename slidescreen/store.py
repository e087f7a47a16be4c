"""SlideResult -> folder. With `stored`, which reads them back, the only module that knows the file formats of results.

A result is written to a hidden sibling of its folder and renamed when complete. What a killed run leaves is recognised by its
name and removed, or, where a finished result had been moved aside for a new one, put back, by the next run.
"""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TextIO

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from slidescreen.atomic import replacing
from slidescreen.errors import OutputError
from slidescreen.records import PATCH_PX, Cell, Explanations, Fraction, Patch, ScaleCheck, ScreenedCell, SlideResult, Status
from slidescreen.taxonomy import BY_CODE, CODES

SCHEMA: Final = 4
"""Of the stored results. It goes up whenever a result made by an older version should be made anew: when files or fields
change, or when the same scan, model and settings give other numbers."""

SUMMARY: Final = "summary.json"
CELLS_CSV: Final = "cells.csv"
CELLS_PARQUET: Final = "cells.parquet"
CELLS_GEOJSON: Final = "cells.geojson"
PATCHES: Final = "patches.zarr"
EXPLANATIONS: Final = "explanations.zarr"
REPORT: Final = "report.html"
OVERVIEW: Final = "overview.jpg"
AREAS: Final = "areas.png"
"""The overview's area classes, `Area` codes, with `SCREENED_BIT` set where cells were searched."""
SCREENED_BIT: Final = 0x80

SHARD: Final = 64
"""Patches per file of `patches.zarr`; each patch is a chunk of its own in it."""
ROWS_AT_ONCE: Final = 4096

COLUMNS: Final = (
    *("cell_id", "x_px", "y_px", "xmin_px", "ymin_px", "xmax_px", "ymax_px", "status", "label"),
    *(f"p_{code}" for code in CODES),
    *("p_blast", "p_atypical", "outlier", "agreement", "reason"),
    *("nucleus_um2", "area_um2", "equivalent_diameter_um", "eccentricity", "focus"),
)

Row = dict[str, str | int | float | None]


class ResultFolder:
    """A result in the making: `OUT/.<slide-id>.partial-<host>-<pid>`. Leaving the `with` block without `commit` removes it.

    Entering it makes the folder; raises OutputError when it cannot be made. OUT is not made: where it has gone, a share no
    longer mounted, nothing may be written into its place.
    """

    def __init__(self, out: Path, slide_id: str) -> None:
        self.final = out / slide_id
        self.path = out / f".{slide_id}.partial-{socket.gethostname()}-{os.getpid()}"

    def keep_patches(self, patches: Iterable[Patch]) -> Iterator[Patch]:
        """Write each patch in passing, in order."""
        for patch in patches:
            try:
                self._patches.append(patch.pixels)
            except OSError as error:
                raise _output_error(self.path, error) from error
            yield patch

    def finish_patches(self) -> zarr.Array[Any]:
        """All patches, (n, 400, 400, 3) uint8, after the last was kept."""
        try:
            return self._patches.close()
        except OSError as error:
            raise _output_error(self.path, error) from error

    def keep_explanations(self, explanations: Explanations | None) -> None:
        """Write the maps of what the scores are sensitive to, where there are any."""
        if explanations is None or not explanations.maps:
            return
        try:
            write_explanations(self.path / EXPLANATIONS, explanations)
        except OSError as error:
            raise _output_error(self.path, error) from error

    def write(
        self,
        result: SlideResult,
        draw: Callable[[Path], str],
        *,
        patches: bool,
    ) -> None:
        """Write every file of the contract.

        `draw` makes the report of the folder once all else is in it, so that the page shows what is stored and a page drawn
        anew is the same; `patches=False` drops the patch store after that.
        """
        try:
            self.finish_patches()
            _write_json(self.path / SUMMARY, summary(result))
            _write_tables(self.path, result)
            _write_geojson(self.path / CELLS_GEOJSON, result)
            quality = [cv2.IMWRITE_JPEG_QUALITY, 88]
            _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(result.overview.image, cv2.COLOR_RGB2BGR), quality)
            (self.path / OVERVIEW).write_bytes(jpeg.tobytes())
            areas = result.overview.area | np.where(result.overview.screened, SCREENED_BIT, 0).astype(np.uint8)
            (self.path / AREAS).write_bytes(cv2.imencode(".png", areas)[1].tobytes())
            (self.path / REPORT).write_text(draw(self.path), encoding="utf-8")
            if not patches:
                shutil.rmtree(self.path / PATCHES)
        except OSError as error:
            raise _output_error(self.path, error) from error

    def commit(self) -> Path:
        """Put the result in its place; an older one stays whole until that moment."""
        old = self.final.with_name(f".{self.final.name}.old")
        try:
            if self.final.exists():
                self.final.rename(old)
            self.path.rename(self.final)
        except OSError as error:
            if old.exists() and not self.final.exists():
                old.rename(self.final)
            raise _output_error(self.final, error) from error
        shutil.rmtree(old, ignore_errors=True)
        return self.final

    def __enter__(self) -> Self:
        try:
            self.path.mkdir()
            self._patches = PatchWriter(self.path / PATCHES)
        except OSError as error:
            shutil.rmtree(self.path, ignore_errors=True)
            raise _output_error(self.path.parent, error) from error
        except BaseException:  # an interrupt here must not leave the folder behind
            shutil.rmtree(self.path, ignore_errors=True)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


class PatchWriter:
    """Appends patches to a Zarr array; holds at most one shard (64 patches, 31 MB)."""

    def __init__(self, path: Path) -> None:
        side = (PATCH_PX, PATCH_PX, 3)
        self._folder = path.parent
        self._array = zarr.create_array(
            store=str(path),
            shape=(0, *side),
            chunks=(1, *side),
            shards=(SHARD, *side),
            dtype="uint8",
            compressors=BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle", typesize=1),
            attributes={"description": "29 um x 29 um around each cell, RGB, row i is line i of cells.csv"},
        )
        self._held: list[NDArray[np.uint8]] = []
        self._written = 0

    def append(self, pixels: NDArray[np.uint8]) -> None:
        """Add one (400, 400, 3) uint8 patch."""
        self._held.append(pixels)
        if len(self._held) == SHARD:
            self._flush()

    def _flush(self) -> None:
        if not self._held:
            return
        _require(self._folder)
        end = self._written + len(self._held)
        self._array.resize((end, PATCH_PX, PATCH_PX, 3))
        self._array[self._written : end] = np.stack(self._held)
        self._written = end
        self._held = []

    def close(self) -> zarr.Array[Any]:
        """Write what is held and give the array back."""
        self._flush()
        return self._array


def write_explanations(path: Path, explanations: Explanations) -> None:
    """(k, 400, 400) uint8 in the order of the attribute `cell_id`, whose numbers are those of `cells.csv`."""
    _require(path.parent)
    array = zarr.create_array(
        store=str(path),
        shape=(len(explanations.maps), PATCH_PX, PATCH_PX),
        chunks=(1, PATCH_PX, PATCH_PX),
        shards=(SHARD, PATCH_PX, PATCH_PX),
        dtype="uint8",
        compressors=BloscCodec(cname="zstd", clevel=3, shuffle="noshuffle"),
        attributes={
            "description": "what the score of each cell is sensitive to, in the frame of its patch, 255 for the highest",
            "cell_id": [row + 1 for row in explanations.maps],
            "method": explanations.method,
            "target": explanations.target,
        },
    )
    array[:] = np.stack(list(explanations.maps.values()))


def summary(result: SlideResult) -> dict[str, Any]:
    """The content of `summary.json`. Fractions lie in [0, 1], percentages in [0, 100]; null where nothing divides."""
    s, d = result.slide, result.differential
    return {
        "slide": {
            "path": s.path,
            "id": s.id,
            "vendor": s.vendor,
            "reader": s.reader,
            "icc": s.icc,
            "width_px": s.size.width,
            "height_px": s.size.height,
            "um_per_px": s.scale.um_per_px,
            "um_per_px_source": s.scale.source,
            "um_per_px_wanted": s.wanted_scale,
            "fingerprint": s.fingerprint,
        },
        "scale_check": _scale_check(result.scale_check),
        "model": dataclasses.asdict(result.model) | {"classes": list(result.model.classes)},
        "status": _status(result),
        "area_mm2": dict(result.area_mm2),
        "cells": result.cell_counts,
        "rejected_because": result.refusals,
        "unsure_because": result.doubts,
        "audit": dataclasses.asdict(result.audit),
        "overview_downsample": result.overview.downsample,
        "counts": dict(d.counts),
        "leukocytes": d.leukocytes,
        "differential_percent": dict(d.percent),
        "differential_percent_ci95": {k: list(v) if v else None for k, v in d.percent_ci95.items()},
        "blast": _fraction(d.blast),
        "atypical": _fraction(d.atypical),
        "nrbc_per_100_wbc": d.nrbc_per_100_wbc,
        "smudge_per_100_wbc": d.smudge_per_100_wbc,
        "quality": dataclasses.asdict(result.quality),
        "settings": dict(result.settings),
        "device": result.device,
        "version": result.version,
        "schema": SCHEMA,
        "created": result.created,
        "timings_s": {k: round(v, 3) for k, v in result.timings_s.items()},
        "waiting_s": {k: round(v, 3) for k, v in result.waiting_s.items()},
        "warnings": list(result.warnings),
    }


def _status(result: SlideResult) -> str:
    """ok, no_leukocytes (searched, none counted) or no_usable_area (nothing to search)."""
    if result.differential.leukocytes:
        return "ok"
    return "no_leukocytes" if result.area_mm2["screened"] else "no_usable_area"


def _scale_check(check: ScaleCheck) -> dict[str, Any]:
    red = check.reading
    return {
        "status": check.status,
        "ruler_um_per_px": red.um_per_px if red else None,
        "interval": [red.low, red.high] if red else None,
        "cells": red.cells if red else 0,
    }


def _fraction(fraction: Fraction) -> dict[str, Any]:
    return {
        "count": fraction.count,
        "of": fraction.total,
        "fraction": fraction.fraction,
        "ci95": list(fraction.ci95) if fraction.ci95 else None,
        "threshold": fraction.threshold,
        "mean_probability": fraction.mean_probability,
    }


def row(cell: ScreenedCell, classes: Sequence[str]) -> Row:
    """A cell as a line of `cells.csv`; positions in level-0 px, empty probabilities where the classifier was not asked."""
    c = cell.cell
    p = None if cell.probabilities is None else dict(zip(classes, cell.probabilities.tolist(), strict=True))
    return {
        "cell_id": cell.id,
        "x_px": round(c.centre.x, 1),
        "y_px": round(c.centre.y, 1),
        "xmin_px": c.box.x,
        "ymin_px": c.box.y,
        "xmax_px": c.box.right,
        "ymax_px": c.box.bottom,
        "status": cell.status,
        "label": cell.label,
        **{f"p_{code}": _rounded(p[code] if p else None) for code in CODES},
        "p_blast": _rounded(cell.p_blast),
        "p_atypical": _rounded(cell.p_atypical),
        "outlier": _rounded(cell.outlier),
        "agreement": _rounded(cell.agreement),
        "reason": cell.reason,
        "nucleus_um2": round(c.nucleus_um2, 1),
        "area_um2": _rounded(c.area_um2, 1),
        "equivalent_diameter_um": _rounded(c.equivalent_diameter_um, 2),
        "eccentricity": _rounded(c.eccentricity, 3),
        "focus": _rounded(c.focus, 3),
    }


def _rounded(value: float | None, digits: int = 6) -> float | None:
    return None if value is None else round(value, digits)


class Typed(NamedTuple):
    """A line of `predictions.csv`. `label`: the code of highest probability, whatever the status. `probabilities` per code."""

    file: str
    label: str
    probabilities: Mapping[str, float]
    p_blast: float
    p_atypical: float
    status: Status = "typed"
    reason: str = ""
    outlier: float | None = None
    agreement: float | None = None


def write_predictions(path: Path, rows: Iterable[Typed]) -> int:
    """`predictions.csv`, a line per image. Returns the number of lines.

    Written beside its place and renamed when complete. Raises OutputError when it cannot be written.
    """
    number = 0
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        judged = ("p_blast", "p_atypical", "status", "reason", "outlier", "agreement")
        writer.writerow(["file", "label", *(f"p_{c}" for c in CODES), *judged])
        for row in rows:
            p = [f"{row.probabilities[c]:.6f}" for c in CODES]
            sums = (f"{row.p_blast:.6f}", f"{row.p_atypical:.6f}", row.status, row.reason)
            writer.writerow([row.file, row.label, *p, *sums, _rounded(row.outlier), _rounded(row.agreement)])
            number += 1
    return number


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _write_tables(folder: Path, result: SlideResult) -> None:
    """`cells.csv` and `cells.parquet`, some thousand rows at a time."""
    kinds: dict[str, pa.DataType] = {name: pa.float64() for name in COLUMNS}
    kinds |= {name: pa.int64() for name in ("cell_id", "xmin_px", "ymin_px", "xmax_px", "ymax_px")}
    kinds |= {name: pa.string() for name in ("status", "label", "reason")}
    schema = pa.schema([(name, kinds[name]) for name in COLUMNS])
    with (
        (folder / CELLS_CSV).open("w", encoding="utf-8", newline="") as file,
        pq.ParquetWriter(folder / CELLS_PARQUET, schema) as parquet,
    ):
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for start in range(0, len(result.cells), ROWS_AT_ONCE):
            rows = [row(cell, result.model.classes) for cell in result.cells[start : start + ROWS_AT_ONCE]]
            writer.writerows(rows)
            parquet.write_table(pa.Table.from_pylist(rows, schema=schema))


def _write_geojson(path: Path, result: SlideResult) -> None:
    """One feature a line, so that the file is written and can be read as a stream."""
    with path.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        _write_features(file, result)
        file.write("\n]}\n")


def _write_features(file: TextIO, result: SlideResult) -> None:
    namespace = uuid.uuid5(uuid.NAMESPACE_OID, result.slide.fingerprint)
    for i, cell in enumerate(result.cells):
        c = cell.cell
        known = cell.status in ("typed", "unsure")
        kind = BY_CODE[cell.label] if known else None
        colour = [int(kind.colour[k : k + 2], 16) for k in (1, 3, 5)] if kind else [128, 128, 128]
        name = kind.name if kind and cell.status == "typed" else f"Unsure: {kind.name}" if kind else cell.status.capitalize()
        measured = {
            "P blast": cell.p_blast,
            "P atypical": cell.p_atypical,
            "Nucleus area um^2": c.nucleus_um2,
            "Area um^2": c.area_um2,
            "Equivalent diameter um": c.equivalent_diameter_um,
            "Eccentricity": c.eccentricity,
            "Focus": c.focus,
        }
        feature = {
            "type": "Feature",
            "id": str(uuid.uuid5(namespace, str(cell.id))),
            "geometry": {"type": "Polygon", "coordinates": [_ring(c)]},
            "properties": {
                "objectType": "detection",
                "name": str(cell.id),
                "classification": {"name": name, "color": colour},
                "measurements": {k: round(v, 6) for k, v in measured.items() if v is not None},
            },
        }
        file.write((",\n" if i else "\n") + json.dumps(feature, ensure_ascii=False))


def _ring(cell: Cell) -> list[list[float]]:
    """The cell's outline, or its box where there is none, closed as GeoJSON asks for it; in level-0 px."""
    b = cell.box
    corners = [[b.x, b.y], [b.right, b.y], [b.right, b.bottom], [b.x, b.bottom]]
    ring = [[round(p.x, 1), round(p.y, 1)] for p in cell.outline] or corners
    return [*ring, ring[0]]


def _require(folder: Path) -> None:
    """Raises FileNotFoundError where the folder has gone: Zarr would make it anew, and all folders above it."""
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))


def _output_error(path: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    return OutputError(
        f"{path}: cannot be written ({reason}); choose another output folder with -o, or free space and check permissions"
    )
