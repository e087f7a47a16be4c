"""Stored results -> rows of the cohort. Only the small files are read: summaries, and the entries of the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from slidescreen.batch.ledger import LOGS
from slidescreen.batch.output import Output, read_json
from slidescreen.records import Fraction
from slidescreen.store import SCHEMA, SUMMARY
from slidescreen.stored import fraction


@dataclass(frozen=True, slots=True)
class SlideRow:
    """One slide with a result. `per_mm2`: leukocytes per mm^2 of screened area. `columns`: those of its row in the input CSV.
    `redo_failed`: why a later attempt to screen it again failed, "" where none did."""

    id: str
    path: str
    status: str
    leukocytes: int
    blast: Fraction
    atypical: Fraction
    counts: Mapping[str, int]
    cells: Mapping[str, int]
    screened_mm2: float
    um_per_px: float
    focus: float | None
    stain: float | None
    tint: float | None
    warnings: tuple[str, ...]
    model: str
    version: str
    created: str
    columns: Mapping[str, str]
    redo_failed: str = ""

    @property
    def file(self) -> str:
        """The file's name without its folders."""
        return PurePath(self.path).name or self.id

    @property
    def patient(self) -> str:
        """As the input CSV names it."""
        return self.columns.get("patient", "")

    @property
    def per_mm2(self) -> float | None:
        """None where nothing was screened."""
        return self.leukocytes / self.screened_mm2 if self.screened_mm2 else None


@dataclass(frozen=True, slots=True)
class Missing:
    """A slide without a result, and why."""

    name: str
    path: str
    stage: str
    error_class: str
    message: str
    next_step: str
    columns: Mapping[str, str]
    log: str
    """Its log below the place of the results, "" where there is none."""


@dataclass(frozen=True, slots=True)
class Cohort:
    """`rows`: worst first. `missing`: by path. `left_out`: results of files that have other content now; `outdated`: results of
    another schema, which cannot be compared."""

    rows: tuple[SlideRow, ...]
    missing: tuple[Missing, ...]
    left_out: int
    outdated: int


def gather(output: Output) -> Cohort:
    """All results and failures of a place."""
    files = set(output.files(LOGS))
    entries = {f.removesuffix(".json"): read_json(output, f"{LOGS}/{f}") or {} for f in files if f.endswith(".json")}
    rows: list[SlideRow] = []
    left_out = outdated = 0
    names = output.results()
    for name in names:
        summary = read_json(output, f"{name}/{SUMMARY}") or {}
        entry = entries.get(name, {})
        if entry.get("superseded_by") in names:
            left_out += 1
        elif summary.get("schema") != SCHEMA:
            outdated += 1
        else:
            rows.append(_row(summary, entry))
    missing = [
        _missing(name, entry, f"{LOGS}/{name}.log" if f"{name}.log" in files else "")
        for name, entry in entries.items()
        if entry.get("failure") and name not in names and not entry.get("superseded_by")
    ]
    return Cohort(tuple(sorted(rows, key=worst_first)), tuple(sorted(missing, key=lambda m: m.path)), left_out, outdated)


def worst_first(row: SlideRow) -> tuple[float, float, str]:
    """By what the blast fraction is at least, then the atypical one: a few cells do not outweigh many."""

    def least(fraction: Fraction) -> float:
        return fraction.ci95[0] if fraction.ci95 else -1.0

    return (-least(row.blast), -least(row.atypical), row.path)


def _row(s: Mapping[str, Any], entry: Mapping[str, Any]) -> SlideRow:
    failed = entry.get("failure")
    return SlideRow(
        id=s["slide"]["id"],
        path=entry.get("path") or s["slide"]["path"],
        status=s["status"],
        leukocytes=s["leukocytes"],
        blast=fraction(s["blast"]),
        atypical=fraction(s["atypical"]),
        counts=s["counts"],
        cells=s["cells"],
        screened_mm2=s["area_mm2"]["screened"],
        um_per_px=s["slide"]["um_per_px"],
        focus=s["quality"]["focus"],
        stain=s["quality"]["stain"],
        tint=s["quality"]["tint"],
        warnings=tuple(s["warnings"]),
        model=s["model"]["name"],
        version=s["version"],
        created=s["created"],
        columns=entry.get("columns") or {},
        redo_failed=f"{failed['message']}; {failed['next_step']}" if failed else "",
    )


def _missing(name: str, entry: Mapping[str, Any], log: str) -> Missing:
    f = entry["failure"]
    told = (f["stage"], f["error_class"], f["message"], f["next_step"])
    return Missing(name, entry["path"], *told, columns=entry.get("columns") or {}, log=log)
