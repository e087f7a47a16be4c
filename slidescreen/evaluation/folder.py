"""An evaluation as a folder: written to a hidden sibling and renamed when complete, so that a half one is never seen."""

from __future__ import annotations

import csv
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from slidescreen import __version__
from slidescreen.errors import OutputError, UsageError
from slidescreen.evaluation.evaluate import DEFAULT_THRESHOLD, evaluate
from slidescreen.evaluation.figures import NAMES, draw
from slidescreen.evaluation.page import render
from slidescreen.evaluation.predictions import read_predictions
from slidescreen.evaluation.result import Evaluation
from slidescreen.evaluation.tables import Table, as_json, as_tables

EVALUATION: Final = "evaluation.json"
PAGE: Final = "evaluation.html"
FIGURES: Final = "figures"
KIND: Final = "slidescreen evaluation"


def evaluate_into(source: Path, out: Path, *, threshold: float = DEFAULT_THRESHOLD) -> Evaluation:
    """Read predictions, evaluate them and write everything to the folder `out`.

    An older evaluation there is replaced; anything else is refused. Raises UsageError and OutputError.
    """
    out = out.resolve()
    _require_free(out)
    evaluation = evaluate(read_predictions(source), source.resolve().name, threshold=threshold)
    write_evaluation(evaluation, out)
    return evaluation


def write_evaluation(evaluation: Evaluation, out: Path) -> None:
    """JSON, tables, figures and page into the folder `out`, all or nothing. Raises UsageError and OutputError."""
    _require_free(out)
    partial, old = _beside(out, "partial"), _beside(out, "old")
    try:
        try:
            _recover(out)
            partial.mkdir(parents=True)
            _write(evaluation, partial)
            _put(partial, old, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error}); check disk and permissions") from error


def _beside(out: Path, what: str) -> Path:
    return out.with_name(f".{out.name}.slidescreen-{what}")


def _recover(out: Path) -> None:
    """Undo what a killed run left: put an evaluation that it had moved aside back, remove its half one."""
    old = _beside(out, "old")
    if old.is_dir():
        if out.exists():
            shutil.rmtree(old)
        else:
            old.rename(out)
    shutil.rmtree(_beside(out, "partial"), ignore_errors=True)


def _require_free(out: Path) -> None:
    """Refuse what is not an evaluation and nothing but one: it would be lost."""
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir():
        raise UsageError(f"{out}: is a file; give a folder to write to")
    held = {entry.name for entry in out.iterdir()}
    if not held:
        return
    if not _is_evaluation(out / EVALUATION):
        raise UsageError(f"{out}: holds something else than an evaluation; give another folder")
    strange = sorted(held - {EVALUATION, PAGE, FIGURES, *_TABLES})
    figures = out / FIGURES
    if figures.is_dir():
        strange += sorted(
            f"{FIGURES}/{p.name}" for p in figures.iterdir() if p.suffix not in (".svg", ".png") or p.stem not in NAMES
        )
    if strange:
        raise UsageError(f"{out}: holds files besides an evaluation ({strange[0]}); move them or give another folder")


_TABLES: Final = (
    *("classes.csv", "measures.csv", "confusion.csv", "decisions.csv"),
    *("roc.csv", "sources.csv", "patients.csv", "calibration.csv"),
)


def _is_evaluation(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("kind") == KIND


def _write(evaluation: Evaluation, folder: Path) -> None:
    created = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    head = {"kind": KIND, "version": __version__, "created": created}
    drawn = draw(evaluation)
    (folder / FIGURES).mkdir()
    for name, (svg, png) in drawn.items():
        (folder / FIGURES / f"{name}.svg").write_bytes(svg)
        (folder / FIGURES / f"{name}.png").write_bytes(png)
    for name, table in as_tables(evaluation).items():
        _write_table(folder / name, table)
    _write_json(folder / EVALUATION, head | as_json(evaluation))
    page = render(evaluation, {name: svg.decode("utf-8") for name, (svg, _) in drawn.items()}, created)
    (folder / PAGE).write_text(page, encoding="utf-8")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _write_table(path: Path, table: Table) -> None:
    header, rows = table
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows)


def _put(partial: Path, old: Path, out: Path) -> None:
    """Put the new folder in its place; an older one stays whole until that moment."""
    try:
        if out.exists():
            out.rename(old)
        partial.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
