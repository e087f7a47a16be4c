"""Labelled images of single cells, listed from a folder or a table; no pixel is read here.

Three forms are known: AML-Cytomorphology_LMU as published (class folders beside `annotations.dat`), a folder per class, and a
CSV file.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from slidescreen.errors import UsageError
from slidescreen.taxonomy import CLASS_OF, LEAVES, NOT_A_LEUKOCYTE

ANNOTATIONS: Final = "annotations.dat"
LMU_UM_PER_PX: Final = 0.0725
"""Of AML-Cytomorphology_LMU (Matek et al. 2019, TCIA, doi 10.7937/tcia.2019.36f5o9ld)."""
LMU_SOURCE: Final = "AML-Cytomorphology_LMU"
REQUIRED: Final = ("file", "label", "um_per_px")
SUFFIXES: Final = frozenset({".tif", ".tiff", ".png", ".webp", ".jpg", ".jpeg", ".bmp"})
NO_ANNOTATION: Final = frozenset({"", "nan", "na", "none"})
HIGHEST_UM_PER_PX: Final = 1.0


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image with one cell in its middle.

    `file`: its name in tables, relative to the folder of the set. `annotation`: the code as it was given, one of the 18 leaves
    or of the 15 classes, or "-" for what is none of them. `label`: that code's class, one of the 15, or "-". `patient` and the
    re-annotations (classes) are "" where unknown, and so is `source_label`, the name that the source gives it.
    """

    path: Path
    file: str
    annotation: str
    um_per_px: float
    source: str = ""
    patient: str = ""
    reannotation_1: str = ""
    reannotation_2: str = ""
    source_label: str = ""

    @property
    def label(self) -> str:
        return CLASS_OF.get(self.annotation, NOT_A_LEUKOCYTE)


def list_images(data: Path, um_per_px: float | None = None) -> list[LabelledImage]:
    """The images of a set, in the order of the table or by name. `um_per_px` is needed for folders per class, and for those
    only: the published set has 0.0725 and a table says it for each image.

    Raises UsageError in one line: which file or line, what is wrong, what to do.
    """
    if data.is_file() and data.suffix.lower() == ".csv":
        images = _from_table(data)
    elif (data / ANNOTATIONS).is_file():
        images = _from_annotations(data)
    elif (data / "cells.csv").is_file():
        images = _from_table(data / "cells.csv")
    elif data.is_dir():
        images = _from_folders(data, um_per_px)
    else:
        raise UsageError(f"{data}: no such data; give a folder with {ANNOTATIONS}, a folder per class, or a CSV file")
    if not images:
        raise UsageError(f"{data}: lists no images; check the path")
    names = [image.file for image in images]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"{data}: {twice} is listed twice; leave one line out")
    return images


def _from_table(path: Path) -> list[LabelledImage]:
    """CSV with columns file,label,um_per_px[,source,patient,reannotation_1,reannotation_2]; others are ignored."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in REQUIRED if name not in (reader.fieldnames or ())]
            if missing:
                raise UsageError(f"{path}: column {', '.join(missing)} is missing; a table needs {', '.join(REQUIRED)}")
            return [_row(path, reader.line_num, row) for row in reader]
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: is not a CSV file ({error})") from error


def _row(path: Path, line: int, row: Mapping[str, str | None]) -> LabelledImage:
    where = f"{path}, line {line}"
    name = row["file"] or ""
    if not name:
        raise UsageError(f"{where}: names no file; complete the line")
    return LabelledImage(
        path=path.parent / name,
        file=name,
        annotation=_code(where, row["label"]),
        um_per_px=_scale(where, row["um_per_px"]),
        source=row.get("source") or "",
        patient=row.get("patient") or "",
        reannotation_1=_class(where, row.get("reannotation_1")),
        reannotation_2=_class(where, row.get("reannotation_2")),
        source_label=row.get("source_label") or "",
    )


def _from_annotations(folder: Path) -> list[LabelledImage]:
    """`annotations.dat`: per line a file with its class folder, the gold standard, and up to two re-annotations."""
    path = folder / ANNOTATIONS
    images = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); check the file") from error
    for number, line in enumerate(lines, 1):
        parts = line.split()
        if not parts:
            continue
        where = f"{path}, line {number}"
        if len(parts) < 2:
            raise UsageError(f"{where}: needs a file and a class ({line.strip()!r}); complete the line")
        again = [_class(where, part) for part in (*parts[2:4], "", "")]
        images.append(
            LabelledImage(
                folder / parts[0], parts[0], _code(where, parts[1]), LMU_UM_PER_PX, LMU_SOURCE, "", again[0], again[1]
            )
        )
    return images


def _from_folders(folder: Path, um_per_px: float | None) -> list[LabelledImage]:
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and (p.name in CLASS_OF or p.name == NOT_A_LEUKOCYTE))
    if not classes:
        raise UsageError(f"{folder}: holds no {ANNOTATIONS} and no folders named by class ({' '.join(LEAVES)})")
    if um_per_px is None:
        raise UsageError(f"{folder}: folders say nothing of the scale; give --um-per-px")
    scale = _scale("--um-per-px", str(um_per_px))
    files = ((c.name, p) for c in classes for p in sorted(c.rglob("*")) if p.suffix.lower() in SUFFIXES and p.is_file())
    return [LabelledImage(path, str(path.relative_to(folder)), code, scale, folder.name) for code, path in files]


def _code(where: str, text: str | None) -> str:
    code = (text or "").strip()
    if code not in CLASS_OF and code != NOT_A_LEUKOCYTE:
        known = " ".join(dict.fromkeys((*CLASS_OF.values(), *LEAVES)))
        raise UsageError(f"{where}: class {code!r} is unknown; use one of {known}, or {NOT_A_LEUKOCYTE} for no leukocyte")
    return code


def _class(where: str, text: str | None) -> str:
    """The class of a re-annotation, "" for none."""
    given = (text or "").strip()
    return "" if given.lower() in NO_ANNOTATION else CLASS_OF.get(_code(where, given), NOT_A_LEUKOCYTE)


def _scale(where: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = 0.0
    if not 0 < value <= HIGHEST_UM_PER_PX:
        raise UsageError(f"{where}: um_per_px {text or 'is missing'} must lie in 0-{HIGHEST_UM_PER_PX:g}; correct it")
    return value


def count_labels(images: Iterable[LabelledImage]) -> dict[str, int]:
    """Images per annotation, as given."""
    counts: dict[str, int] = {}
    for image in images:
        counts[image.annotation] = counts.get(image.annotation, 0) + 1
    return counts
