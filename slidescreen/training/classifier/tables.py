"""Tables of what was measured: as plain values for a model's card, as Markdown for its README."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slidescreen.errors import UsageError

Interval = tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Table:
    """`rows` of cells as they are printed, as many as there are `columns`. `note`: what was counted, on what; may be empty."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def plain(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {"title": self.title, "note": self.note, "columns": list(self.columns), "rows": [list(r) for r in self.rows]}

    def markdown(self) -> str:
        """Heading, note and table."""
        lines = [f"### {self.title}", ""]
        lines += [self.note, ""] if self.note else []
        for cells in (self.columns, ("---",) * len(self.columns), *self.rows):
            lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
        return "\n".join(lines)


def share(count: int, total: int) -> str:
    """ "12.5 % (3 of 24)", and an en dash for none of nothing."""
    return f"{100 * count / total:.1f} % ({count} of {total})" if total else "\N{EN DASH}"


def number(value: float | None, digits: int = 3, interval: Interval = None) -> str:
    """ "0.971 (0.952-0.985)", without an interval where there is none, and an en dash for what is undefined."""
    if value is None or value != value:
        return "\N{EN DASH}"
    between = " to " if interval and interval[0] < 0 else "-"
    limits = "" if interval is None else f" ({interval[0]:.{digits}f}{between}{interval[1]:.{digits}f})"
    return f"{value:.{digits}f}{limits}"


def read_decision(path: Path) -> dict[str, Any]:
    """Thresholds of decision, and on what they were chosen. Raises UsageError."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return {"blast": float(told["blast"]), "atypical": float(told["atypical"]), "chosen_on": str(told["chosen_on"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--decision {path}: cannot be read ({error}); give what benchmarks/folds.py wrote") from error


def read_evidence(path: Path) -> Any:
    """What a benchmark printed as JSON. Raises UsageError where it is no object and no list of objects."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--evidence {path}: cannot be read as JSON ({error}); give what a benchmark wrote") from error
    parts = found if isinstance(found, list) else [found]
    if not parts or not all(isinstance(part, Mapping) for part in parts):
        raise UsageError(f"--evidence {path}: holds no tables; give what a benchmark wrote")
    return found


def tables_of(title: str, found: Any) -> Iterator[Table]:
    """Nested values as tables: a list of objects, or an object of flat objects, is one table with a row for each; other
    values of an object are rows of name and value, and what is nested deeper follows under a title of its own."""
    if isinstance(found, list):
        yield _table(title, [("", row) for row in found])
    elif len(found) > 1 and all(isinstance(v, Mapping) and _flat(v) for v in found.values()):
        yield _table(title, list(found.items()))
    else:
        deep = {k: v for k, v in found.items() if not _is_value(v)}
        rows = tuple((str(k), _said(v)) for k, v in found.items() if k not in deep)
        if rows:
            yield Table(title, "", ("measure", "value"), rows)
        for key, value in deep.items():
            yield from tables_of(f"{title}, {key}", value)


def _table(title: str, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    columns = tuple(dict.fromkeys(key for _, row in rows for key in row))
    named = any(name for name, _ in rows)
    cells = tuple((*((name,) if named else ()), *(_said(row.get(c, "")) for c in columns)) for name, row in rows)
    return Table(title, "", ("", *columns) if named else columns, cells)


def _flat(row: Mapping[str, Any]) -> bool:
    return all(_is_value(v) for v in row.values())


def _is_value(value: Any) -> bool:
    """A number, a text, a list of these, or an estimate with its interval."""
    if isinstance(value, Mapping):
        return "value" in value
    return not (isinstance(value, list) and any(isinstance(v, Mapping) for v in value))


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return number(value["value"], 3, value.get("ci95") or None)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(_said(v) for v in value)
    return "\N{EN DASH}" if value is None else str(value)
