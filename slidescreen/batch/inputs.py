"""What a batch is asked to screen: files, folders, globs, and CSV files with a row per slide."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from slidescreen.batch.slides import list_scans
from slidescreen.errors import UsageError
from slidescreen.scale import MAX_UM_PER_PX, MIN_UM_PER_PX
from slidescreen.slide import is_remote, location

PATH: Final = "path"
FRACTION: Final = "_fraction"
"""Columns whose names end so hold a share of cells in [0, 1], by a morphologist or by flow cytometry."""


@dataclass(frozen=True, slots=True)
class Input:
    """One slide as it was asked for. `um_per_px` and `aoi` win over those of the command line. `columns`: every further column
    of its row in the CSV file, as text."""

    path: Path
    um_per_px: float | Literal["auto"] | None = None
    aoi: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)


def read_inputs(arguments: Sequence[str], out: Path | None) -> list[Input]:
    """The slides, each once, in the order given. A CSV file stands for its rows; paths in it are relative to it.

    Raises UsageError for a CSV file that is wrong, naming the line, and when there is nothing to screen.
    """
    tables = [a for a in arguments if a.lower().endswith(".csv") and Path(a).is_file()]
    rows = [row for table in tables for row in _rows(Path(table))]
    others = [a for a in arguments if a not in tables]
    scans = [Input(path) for path in list_scans(others, out)] if others or not tables else []
    once: dict[Path, Input] = {}
    for each in (*rows, *scans):
        first = once.setdefault(each.path if is_remote(each.path) else each.path.resolve(), each)
        if first != each and each in rows:
            raise UsageError(f"{each.path}: named by two rows with other values; leave one, or use two output folders")
    if not once:
        raise UsageError(f"{', '.join(tables)}: no rows; add a line per slide")
    return list(once.values())


def _rows(table: Path) -> Iterator[Input]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if PATH not in (reader.fieldnames or ()):
                first = ",".join(reader.fieldnames or ())
                hint = "save it with commas between the fields" if ";" in first or "\t" in first else "add one"
                raise UsageError(f"{table}: needs a column named {PATH}; its first line says {first or 'nothing'}; {hint}")
            for row in reader:
                yield _input(table, reader.line_num, row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{table}: cannot be read as CSV ({error}); save it as CSV in UTF-8 with commas") from error


def _input(table: Path, line: int, row: Mapping[str | None, str | None]) -> Input:
    where = f"{table}, line {line}"
    if None in row or None in row.values():
        raise UsageError(f"{where}: has another number of fields than the first line; quote fields that hold commas")
    values = {str(k).strip(): str(v).strip() for k, v in row.items()}
    if not values[PATH]:
        raise UsageError(f"{where}: {PATH} is empty; name the scan")
    for name, value in values.items():
        if name.endswith(FRACTION) and value:
            _number(where, name, value, 0, 1, "a fraction; divide percentages by 100")
    wanted = values.get("um_per_px", "")
    um_per_px: float | Literal["auto"] | None = None
    if wanted == "auto":
        um_per_px = "auto"
    elif wanted:
        um_per_px = _number(where, "um_per_px", wanted, MIN_UM_PER_PX, MAX_UM_PER_PX, "um per level-0 pixel, or auto")
    rest = {k: v for k, v in values.items() if k not in (PATH, "um_per_px", "aoi")}
    path = location(values[PATH])
    return Input(path if is_remote(path) else table.parent / path, um_per_px, values.get("aoi", ""), rest)


def _number(where: str, name: str, value: str, low: float, high: float, what: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not low <= number <= high:
        raise UsageError(f"{where}: {name} {value!r} must be a number in {low:g}-{high:g} ({what})")
    return number
