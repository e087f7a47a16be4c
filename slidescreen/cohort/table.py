"""The cohort as `cohort.csv` and `cohort.parquet`: one row a slide, those without a result too."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from slidescreen.cohort.outliers import Outlier
from slidescreen.cohort.rows import Cohort, Missing, SlideRow
from slidescreen.records import Fraction
from slidescreen.taxonomy import CODES

Value = str | int | float | None
Outliers = Mapping[str, Sequence[Outlier]]

TEXT: Final = ("slide_id", "path", "status")
AFTER: Final = ("warnings", "outliers", "model", "version", "created", "error_class", "message", "next_step")
WHOLE: Final = ("leukocytes", "blast_count", "blast_of", "atypical_count", "atypical_of", "unsure", "edge", "rejected")
LIMITS: Final = ("blast_fraction", "blast_low", "blast_high", "atypical_fraction", "atypical_low", "atypical_high")
MEASURED: Final = ("screened_mm2", "leukocytes_per_mm2", "um_per_px", "focus", "stain_density", "stain_tint")


def columns(cohort: Cohort) -> list[tuple[str, pa.DataType]]:
    """Names and types, those of the input CSV last."""
    own: list[tuple[str, pa.DataType]] = [(name, pa.string()) for name in TEXT]
    own += [(name, pa.int64()) for name in (*WHOLE, *(f"n_{code}" for code in CODES))]
    own += [(name, pa.float64()) for name in (*LIMITS, *MEASURED)]
    own += [(name, pa.string()) for name in AFTER]
    taken = {name for name, _ in own}
    given = dict.fromkeys(name for inputs in _inputs(cohort) for name in inputs)
    return own + [(f"input_{name}" if name in taken else name, pa.string()) for name in given]


def as_csv(cohort: Cohort, outliers: Outliers) -> bytes:
    """Empty where there is no value."""
    names = [name for name, _ in columns(cohort)]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(_rows(cohort, outliers))
    return text.getvalue().encode("utf-8", "replace")


def as_parquet(cohort: Cohort, outliers: Outliers) -> bytes:
    """Null where there is no value; the columns of the input CSV stay text."""
    schema = pa.schema(columns(cohort))
    rows = [{k: _clean(v) for k, v in row.items()} for row in _rows(cohort, outliers)]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    return sink.getvalue()


def _clean(value: Value) -> Value:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _rows(cohort: Cohort, outliers: Outliers) -> list[dict[str, Value]]:
    taken = {name for name, _ in columns(Cohort((), (), 0, 0))}
    rows = [_result(row, outliers.get(row.id, ())) for row in cohort.rows] + [_failure(each) for each in cohort.missing]
    for row, inputs in zip(rows, _inputs(cohort), strict=True):
        row |= {f"input_{name}" if name in taken else name: value for name, value in inputs.items()}
    return rows


def _inputs(cohort: Cohort) -> list[Mapping[str, str]]:
    """The columns of the input CSV, row for row."""
    return [row.columns for row in cohort.rows] + [each.columns for each in cohort.missing]


def _result(row: SlideRow, apart: Sequence[Outlier]) -> dict[str, Value]:
    return {
        "slide_id": row.id,
        "path": row.path,
        "status": row.status,
        "leukocytes": row.leukocytes,
        **_fraction("blast", row.blast),
        **_fraction("atypical", row.atypical),
        **{name: row.cells[name] for name in ("unsure", "edge", "rejected")},
        **{f"n_{code}": row.counts[code] for code in CODES},
        "screened_mm2": row.screened_mm2,
        "leukocytes_per_mm2": row.per_mm2,
        "um_per_px": row.um_per_px,
        "focus": row.focus,
        "stain_density": row.stain,
        "stain_tint": row.tint,
        "warnings": " | ".join(row.warnings),
        "outliers": " | ".join(o.said for o in apart),
        "model": row.model,
        "version": row.version,
        "created": row.created,
        "message": row.redo_failed,
    }


def _fraction(name: str, f: Fraction) -> dict[str, Value]:
    low, high = f.ci95 or (None, None)
    return {
        f"{name}_count": f.count,
        f"{name}_of": f.total,
        f"{name}_fraction": f.fraction,
        f"{name}_low": low,
        f"{name}_high": high,
    }


def _failure(each: Missing) -> dict[str, Value]:
    told = {"error_class": each.error_class, "message": each.message, "next_step": each.next_step}
    return {"slide_id": each.name, "path": each.path, "status": "failed", **told}
