"""Do the engines say what torch in float32 says? On real cells: every image of one source, and some of the others.

    python benchmarks/agreement.py --data CELLS [--others 2000] [--input-px 192] [--keep FOLDER] [--json agreement.json]

CELLS is a folder of labelled images that `slidescreen data check` reads. int8 is calibrated on other images than those that are
compared. Near-ties: cells whose label differs, with the reference's margin between its two best classes. Ctrl-C ends it with
what was compared so far, the images of the source first; with `--keep`, what each engine said is kept in that folder, and the
next run goes on from there (cells a second are those of what it ran itself).
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import hashlib
import json
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from slidescreen.atomic import replacing
from slidescreen.classify import softmax
from slidescreen.engines import ClassifySettings, Engine, open_engine
from slidescreen.engines.calibration import calibration_patches
from slidescreen.model import DEFAULT_MODEL, ModelCard, find_model, load_card
from slidescreen.patches import patch_of_image
from slidescreen.slide import read_image
from slidescreen.taxonomy import BLAST

KINDS = {
    "openvino bfloat16": {"engine": "openvino", "precision": "bfloat16"},
    "openvino float32": {"engine": "openvino", "precision": "float32"},
    "openvino int8": {"engine": "openvino", "precision": "int8"},
    "onnxruntime float32": {"engine": "onnxruntime"},
    "torch bfloat16": {"engine": "torch", "precision": "bfloat16"},
}
REFERENCE = "torch float32"
CALIBRATION = 300
AT_ONCE = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--source", default="lmu")
    parser.add_argument("--most", type=int, default=0, help="of the images of the source; 0 for all")
    parser.add_argument("--others", type=int, default=2000)
    parser.add_argument("--input-px", type=int, default=0)
    parser.add_argument("--engines", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with (asked.data / "cells.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    random.Random(0).shuffle(rows)
    own = [row for row in rows if row["source"] == asked.source]
    others = [row for row in rows if row["source"] != asked.source]
    compared = [*(own[: asked.most] if asked.most else own), *others[: asked.others]]
    with tempfile.TemporaryDirectory() as folder:
        model = with_input(find_model(asked.model), asked.input_px, Path(folder))
        calibration = Path(folder) / "cells"
        write_patches(patches(asked.data, others[asked.others : asked.others + CALIBRATION]), calibration)
        told = compare(model, asked.data, compared, asked.engines, calibration, asked.keep)
    for line in told:
        print(json.dumps({k: v for k, v in line.items() if k != "near ties"}))
        for tie in line["near ties"]:
            print("   ", tie)
    if asked.json:
        head = {"machine": platform.processor() or platform.machine(), "input_px": asked.input_px}
        asked.json.write_text(json.dumps({**head, "engines": told}, indent=1))


def with_input(model: Path, px: int, folder: Path) -> Path:
    """The model, or a copy of it whose card asks for another input."""
    if not px:
        return model
    copy = folder / f"{model.name}-{px}"
    shutil.copytree(model, copy)
    card = json.loads((copy / "card.json").read_text()) | {"input_px": px}
    (copy / "card.json").write_text(json.dumps(card))
    return copy


def patches(data: Path, rows: Sequence[dict[str, str]]) -> NDArray[np.uint8]:
    return np.stack([patch_of_image(read_image(data / row["file"]), float(row["um_per_px"])) for row in rows])


def write_patches(cells: NDArray[np.uint8], folder: Path) -> None:
    array = zarr.create_array(
        store=str(folder / "patches.zarr"), shape=cells.shape, chunks=(1, *cells.shape[1:]), dtype="uint8"
    )
    array[:] = cells


class Said:
    """What one engine said of cells, by file: (15,) float32 probabilities. Kept in `path`, where there is one."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.of: dict[str, NDArray[np.float32]] = {}
        self.seconds, self.ran = 0.0, 0
        if path is not None and path.exists():
            with np.load(path) as kept:
                self.of = dict(zip(kept["files"].tolist(), kept["probabilities"], strict=True))

    def run(self, engine: Engine, files: Sequence[str], cells: NDArray[np.uint8]) -> None:
        began = time.perf_counter()
        found = softmax(engine.run(cells).logits)
        self.seconds += time.perf_counter() - began
        self.ran += len(files)
        self.of |= dict(zip(files, found, strict=True))
        if self.path is not None:
            with replacing(self.path) as partial, partial.open("wb") as file:
                np.savez(file, files=np.array(list(self.of)), probabilities=np.stack(list(self.of.values())))


def compare(
    model: Path,
    data: Path,
    rows: Sequence[dict[str, str]],
    names: Sequence[str],
    calibration: Path,
    keep: Path | None = None,
) -> list[dict[str, Any]]:
    """All engines on the same cells, some at a time, so that not all of them are held."""
    engines: dict[str, Engine] = {REFERENCE: open_engine(model, ClassifySettings("cpu", engine="torch"))}
    for name in names:
        kind: dict[str, Any] = KINDS[name] | ({"calibration": str(calibration)} if "int8" in name else {})
        engines[name] = open_engine(model, dataclasses.replace(ClassifySettings("cpu"), **kind))
    card = load_card(model)
    said = {name: Said(None if keep is None else kept_in(keep, card, name, calibration)) for name in engines}
    compared = 0
    try:
        for start in range(0, len(rows), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            files = [row["file"] for row in some]
            missing = {name: [i for i, file in enumerate(files) if file not in said[name].of] for name in engines}
            if any(missing.values()):
                cells = patches(data, some)
                for name, which in missing.items():
                    if which:
                        said[name].run(engines[name], [files[i] for i in which], cells[which])
            compared += len(some)
            print(f"{compared} of {len(rows)}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("interrupted: what was compared so far", file=sys.stderr)
    rows = rows[:compared]
    p = {name: np.stack([each.of[row["file"]] for row in rows]) for name, each in said.items()}
    return [
        {
            **line(p[REFERENCE], p[name], card.classes, rows),
            "engine": name,
            "cells": len(rows),
            "cells_per_s": round(each.ran / each.seconds, 1) if each.ran else None,
        }
        for name, each in said.items()
    ]


def kept_in(folder: Path, card: ModelCard, name: str, calibration: Path) -> Path:
    """The file of what an engine says; int8 says other things with other calibration cells."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = hashlib.sha256(calibration_patches(str(calibration)).tobytes()).hexdigest()[:12] if "int8" in name else ""
    return folder / f"{card.identity[:12]}-{'-'.join([*name.split(), *filter(None, [cells])])}.npz"


def line(
    expected: NDArray[np.float32], found: NDArray[np.float32], classes: Sequence[str], rows: Sequence[dict[str, str]]
) -> dict[str, Any]:
    """Agreement of labels, largest change of P(blast), and each cell whose label differs."""
    blast = [i for i, code in enumerate(classes) if code in BLAST]
    change = np.abs(found[:, blast].sum(1) - expected[:, blast].sum(1))
    other = np.flatnonzero(found.argmax(1) != expected.argmax(1))
    best = np.sort(expected, 1)
    ties = [
        f"{rows[i]['file']}: {classes[expected[i].argmax()]} -> {classes[found[i].argmax()]}, "
        f"margin {best[i, -1] - best[i, -2]:.4f}"
        for i in other
    ]
    return {
        "labels": round(float(1 - len(other) / len(rows)), 5),
        "max_dP_blast": round(float(change.max()), 5),
        "mean_dP_blast": round(float(change.mean()), 6),
        "near ties": ties,
    }


if __name__ == "__main__":
    main()
