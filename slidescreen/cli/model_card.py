"""Models as people read them in a terminal: a table of all, and the card of one, whatever fields it has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from slidescreen.installed.listing import InstalledModel

SECTIONS: Final = {
    "training": "Training",
    "training_data": "Training data",
    "measured": "Measured on images it had not seen",
    "tables": "Tables",
    "evidence": "Further evidence",
    "calibration": "Calibration",
    "rejection": "Rejection",
    "decision": "Decision",
    "intended_use": "Intended use",
    "limits": "Limits",
    "licence": "Licences",
}
"""Fields of a card that have a place and a title; others follow under their own name."""
HEAD: Final = frozenset({"name", "architecture", "classes", "patch_um", "input_px", "mean", "std", "sha256", "um_per_px"})
KEY_MEASURES: Final = ("blast AUC", "atypical AUC", "balanced accuracy")
WIDEST_ROW: Final = 8
"""Columns a table of numbers may have; a wider one is shown as lists."""


def plain(value: object) -> str:
    """A value of a card as text for a terminal: nothing in it is a control character or markup."""
    if isinstance(value, bool) or value is None:
        text = {True: "yes", False: "no", None: "-"}[value]
    elif isinstance(value, float):
        text = f"{value:.4g}"
    elif isinstance(value, Sequence) and not isinstance(value, str):
        text = ", ".join(plain(each) for each in value)
    else:
        text = str(value)
    return "".join(c if c.isprintable() else " " for c in text)


def models_table(title: str, models: Iterable[InstalledModel]) -> Table:
    """The models of one kind."""
    table = Table("name", "input", "measured", "lies", title=title, title_justify="left", title_style="bold", box=box.SIMPLE)
    for model in models:
        name = f"{model.name} (default)" if model.default else model.name
        where = "comes with slidescreen" if model.shipped else str(model.folder)
        cells = (plain(name), _input(model), _key_numbers(model), plain(where))
        table.add_row(*(Text(cell, overflow="fold") for cell in cells))
    return table


def _input(model: InstalledModel) -> str:
    if model.kind == "classifier":
        return f"{plain(model.card.get('patch_um'))} um, {plain(model.card.get('input_px'))} px"
    return f"{plain(model.card.get('um_per_px'))} um/px" if model.kind == "detector" else "its card cannot be read"


def _key_numbers(model: InstalledModel) -> str:
    """The measures that tell most, wherever in `measured` they first stand; of a detector the F1 of its first table."""
    measured = model.card.get("measured")
    if not isinstance(measured, Mapping):
        return "-"
    if model.kind == "detector":
        scores = list(_found(measured, "f1"))
        first = next((str(name) for name in measured), "")
        return f"F1 {min(scores):.3f}-{max(scores):.3f} ({plain(first)})" if scores else "-"
    found = ((name, next(_found(measured, name), None)) for name in KEY_MEASURES)
    return ", ".join(f"{name} {value:.3f}" for name, value in found if value is not None) or "-"


def _found(values: Mapping[Any, Any], name: str) -> Iterator[float]:
    """Numbers of that name, in the first place where there are any: here, else in the first table that has them."""
    here = values.get(name)
    if isinstance(here, int | float) and not isinstance(here, bool):
        yield float(here)
        return
    for value in values.values():
        if isinstance(value, Mapping):
            inside = [number for row in (value, *value.values()) if isinstance(row, Mapping) for number in _own(row, name)]
            if inside:
                yield from inside
                return


def _own(row: Mapping[Any, Any], name: str) -> Iterator[float]:
    number = row.get(name)
    if isinstance(number, int | float) and not isinstance(number, bool):
        yield float(number)


def card_view(model: InstalledModel) -> Group:
    """The whole card."""
    card = model.card
    head = {
        "kind": model.kind,
        "default": model.default,
        "lies in": str(model.folder),
        "architecture": card.get("architecture"),
        "input": _input(model),
        "normalised by": f"mean {plain(card.get('mean'))}, std {plain(card.get('std'))}" if "mean" in card else None,
        "classes": card.get("classes"),
        "sha256": card.get("sha256"),
    }
    title = card["name"] if isinstance(card.get("name"), str) else model.name
    parts: list[RenderableType] = [
        Text(plain(title), style="bold"),
        _pairs({k: v for k, v in head.items() if v is not None}),
    ]
    others = {key: plain(key).replace("_", " ").capitalize() for key in card if key not in HEAD and key not in SECTIONS}
    for key, heading in (SECTIONS | others).items():
        if key in card:
            parts += [Text(f"\n{heading}", style="bold"), Padding(_shown(card[key]), (0, 0, 0, 2))]
    return Group(*parts)


def _shown(value: Any) -> RenderableType:
    """Any value of a card: tables, rows of one kind and tables of tables that are alike as grids, other tables as pairs, the
    rest as text."""
    if isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
        return _listed(value)
    if not isinstance(value, Mapping) or _is_estimate(value):
        return Text(_leaf(value))
    inner = {key: each for key, each in value.items() if _is_nested(each)}
    flat = {key: each for key, each in value.items() if key not in inner}
    parts: list[RenderableType] = [_pairs(flat)] if flat else []
    rows = {key: each for key, each in inner.items() if isinstance(each, Mapping)}
    alike = {name: None for row in rows.values() for name in row}
    leaves = not any(_is_nested(each) for row in rows.values() for each in row.values())
    if len(inner) == len(rows) > 1 and leaves and len(alike) < WIDEST_ROW:
        return Group(
            *parts, _grid([*alike], [[name, *(row.get(c, "") for c in alike)] for name, row in rows.items()], named=True)
        )
    for key, each in inner.items():
        parts += [Text(plain(key), style="italic"), Padding(_shown(each), (0, 0, 0, 2))]
    return Group(*parts)


def _listed(values: Sequence[Mapping[Any, Any]]) -> RenderableType:
    """Tables with `title`, `note`, `columns` and `rows`; other objects of a list as rows of one table."""
    if not all(isinstance(each.get("columns"), list) and isinstance(each.get("rows"), list) for each in values):
        columns = list({name: None for row in values for name in row})
        return _grid(columns, [[row.get(c, "") for c in columns] for row in values])
    parts: list[RenderableType] = []
    for table in values:
        rows = [row if isinstance(row, list) else [row] for row in table["rows"]]
        parts.append(Text(plain(table.get("title", "")), style="italic"))
        parts += [Text(plain(table["note"]))] if table.get("note") else []
        parts.append(_grid(table["columns"], rows))
    return Group(*parts)


def _is_estimate(value: object) -> bool:
    return isinstance(value, Mapping) and "value" in value and set(value) <= {"value", "ci95", "patients"}


def _is_nested(value: object) -> bool:
    inside = isinstance(value, list) and any(_is_nested(each) or isinstance(each, list) for each in value)
    return inside or (isinstance(value, Mapping) and not _is_estimate(value))


def _leaf(value: Any) -> str:
    """An estimate with its interval, or any other value that fits a line."""
    if isinstance(value, Mapping) and _is_estimate(value):
        limits = value.get("ci95")
        return plain(value["value"]) + (f" ({plain(limits)})".replace(", ", " to ") if isinstance(limits, list) else "")
    return "(see card.json)" if _is_nested(value) else plain(value)


def _pairs(values: Mapping[Any, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    for key, value in values.items():
        table.add_row(Text(plain(key)), Text(_leaf(value), overflow="fold"))
    return table


def _grid(columns: Sequence[Any], rows: Iterable[Sequence[Any]], *, named: bool = False) -> Table:
    """`named`: each row begins with its name, which has no column heading."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for column in (*([""] if named else []), *columns):
        table.add_column(Text(plain(column)))
    for row in rows:
        table.add_row(*(Text(_leaf(value), overflow="fold") for value in row[: len(table.columns)]))
    return table
