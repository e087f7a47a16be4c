"""Cells of a result folder, or images of single cells -> a folder of overlays and one page that shows them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import zarr
from numpy.typing import NDArray

from slidescreen.atomic import making_folder
from slidescreen.classify import Classifier
from slidescreen.errors import OpenError, SlidescreenError, UsageError
from slidescreen.explain import MOST_CELLS, ExplainSettings, explain
from slidescreen.patches import patch_of_image
from slidescreen.records import RgbImage
from slidescreen.report import render_explained
from slidescreen.report.explained import ExplainedCell, page_picture, side_by_side
from slidescreen.slide import read_image, why_unreadable
from slidescreen.store import CELLS_CSV, PATCHES, SUMMARY
from slidescreen.taxonomy import ATYPICAL, BLAST, probability_of

MOST_ASKED: Final = 500
"""Cells on one page."""
AT_ONCE: Final = 32
PAGE: Final = "index.html"


@dataclass(frozen=True, slots=True, eq=False)
class NamedPatch:
    """A (400, 400, 3) uint8 picture with the name it is shown and stored under. `said`: the label it was given when it was
    screened, or its status; "" for an image."""

    name: str
    stem: str
    pixels: RgbImage
    said: str = ""


def is_result(folder: Path) -> bool:
    """Whether it is a result folder."""
    return (folder / SUMMARY).is_file()


def cells_of_result(folder: Path, wanted: str, identity: str) -> list[tuple[int, str]]:
    """The cells to show as (number, label or status): `wanted` is "top", the likeliest blasts, or numbers with commas.

    Raises UsageError where the pictures were not kept, a number is unknown, or the cells were typed by another model than
    that of `identity`.
    """
    if not (folder / PATCHES).is_dir():
        raise UsageError(f"{folder}: has no {PATCHES}; rescreen without --no-patches")
    try:
        model = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["model"]
        with (folder / CELLS_CSV).open(encoding="utf-8", newline="") as file:
            cells = [(int(r["cell_id"]), r["label"] or r["status"], r["p_blast"], r["label"]) for r in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder}: is not a complete result ({error}); screen the scan again") from error
    if model.get("identity") != identity:
        raise UsageError(f"{folder}: its cells were typed by another model, {model['name']}; name that one with --model")
    if wanted == "top":
        ranked = sorted((c for c in cells if c[3]), key=lambda c: (-float(c[2]), c[0]))
        return [(number, said) for number, said, *_ in ranked[:MOST_CELLS]]
    known = {number: said for number, said, *_ in cells}
    return [(number, known[number]) for number in _numbers(folder, wanted, known)]


def _numbers(folder: Path, wanted: str, known: Iterable[int]) -> list[int]:
    try:
        numbers = list(dict.fromkeys(int(part) for part in wanted.split(",")))
    except ValueError:
        raise UsageError(f"--cells {wanted}: must be top, or cell numbers such as 3,17") from None
    unknown = [n for n in numbers if n not in set(known)]
    if unknown:
        raise UsageError(f"--cells {unknown[0]}: {folder} has no such cell; the numbers are the cell_id of {CELLS_CSV}")
    if len(numbers) > MOST_ASKED:
        raise UsageError(f"--cells: {len(numbers)} cells are too many for one page; ask for at most {MOST_ASKED}")
    return numbers


def patches_of_result(folder: Path, cells: Sequence[tuple[int, str]]) -> Iterator[NamedPatch]:
    """The stored pictures, one at a time."""
    array: Any = zarr.open_array(folder / PATCHES, mode="r")
    for number, said in cells:
        yield NamedPatch(f"Cell {number}", f"cell-{number:06}", np.asarray(array[number - 1], np.uint8), said)


def patches_of_images(paths: Sequence[Path], um_per_px: float, failures: list[SlidescreenError]) -> Iterator[NamedPatch]:
    """The central 29 um of each image; those that cannot be read go to `failures`."""
    for i, path in enumerate(paths, 1):
        try:
            yield NamedPatch(path.name, f"{i:04}-{path.stem}", patch_of_image(read_image(path), um_per_px))
        except (OSError, ValueError, SyntaxError) as error:
            reason = why_unreadable(error, path)
            failures.append(OpenError(f"{path}: not an image that can be read ({reason}); mend it or leave it out"))


def write_explained(
    out: Path, title: str, patches: Iterable[NamedPatch], classifier: Classifier, settings: ExplainSettings
) -> int:
    """One PNG a cell (picture | overlay) and `index.html`, complete or not at all; some cells at a time. Returns how many.

    Nothing is written for no cells. Raises UsageError when `out` holds files already, OutputError when it cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: is there already; choose another folder with -o, or remove it")
    cells: list[ExplainedCell] = []
    waiting = iter(patches)
    some = list(islice(waiting, AT_ONCE))
    if not some:
        return 0
    with making_folder(out) as partial:
        while some:
            cells += _explained(some, partial, classifier, settings)
            some = list(islice(waiting, AT_ONCE))
        page = render_explained(title, classifier.card.name, cells, settings.method, settings.target)
        (partial / PAGE).write_text(page, encoding="utf-8")
    return len(cells)


def _explained(
    some: Sequence[NamedPatch], folder: Path, classifier: Classifier, settings: ExplainSettings
) -> Iterator[ExplainedCell]:
    pixels = np.stack([patch.pixels for patch in some])
    maps = np.round(255 * explain(pixels, classifier, settings)).astype(np.uint8)
    classes = classifier.card.classes
    for patch, sensitivity, p in zip(some, maps, classifier.probabilities(pixels), strict=True):
        pair = side_by_side(patch.pixels, sensitivity)
        _write_png(folder / f"{patch.stem}.png", pair)
        best = sorted(zip(p.tolist(), classes, strict=True), reverse=True)[:3]
        blast, atypical = (probability_of(members, p, classes) for members in (BLAST, ATYPICAL))
        likeliest = tuple((code, value) for value, code in best)
        yield ExplainedCell(patch.name, patch.said, likeliest, blast, atypical, page_picture(pair))


def _write_png(path: Path, rgb: NDArray[np.uint8]) -> None:
    path.write_bytes(cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes())
