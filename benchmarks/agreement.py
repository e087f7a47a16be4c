"""Do the engines say what torch in float32 says? On real cells: every image of one source, and some of the others.

    python benchmarks/agreement.py --data CELLS [--others 2000] [--input-px 192] [--json agreement.json]

CELLS is a folder of labelled images that `slidescreen data check` reads. int8 is calibrated on other images than those that are
compared. Near-ties: cells whose label differs, with the reference's margin between its two best classes. Ctrl-C ends it with
what was compared so far, the images of the source first.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
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

from slidescreen.classify import softmax
from slidescreen.engines import ClassifySettings, Engine, open_engine
from slidescreen.model import DEFAULT_MODEL, find_model, load_card
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
        told = compare(model, asked.data, compared, asked.engines, calibration)
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


def compare(
    model: Path, data: Path, rows: Sequence[dict[str, str]], names: Sequence[str], calibration: Path
) -> list[dict[str, Any]]:
    """All engines on the same cells, some at a time, so that not all of them are held."""
    engines: dict[str, Engine] = {"torch float32": open_engine(model, ClassifySettings("cpu", engine="torch"))}
    for name in names:
        kind: dict[str, Any] = KINDS[name] | ({"calibration": str(calibration)} if "int8" in name else {})
        engines[name] = open_engine(model, dataclasses.replace(ClassifySettings("cpu"), **kind))
    found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in engines}
    seconds = dict.fromkeys(engines, 0.0)
    try:
        for start in range(0, len(rows), AT_ONCE):
            some = patches(data, rows[start : start + AT_ONCE])
            now: dict[str, NDArray[np.float32]] = {}
            for name, engine in engines.items():
                began = time.perf_counter()
                now[name] = softmax(engine.run(some).logits)
                seconds[name] += time.perf_counter() - began
            for name, probabilities in now.items():
                found[name].append(probabilities)
            print(f"{start + len(some)} of {len(rows)}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("interrupted: what was compared so far", file=sys.stderr)
    rows = rows[: sum(map(len, found["torch float32"]))]
    p = {name: np.concatenate(parts) for name, parts in found.items()}
    classes = load_card(model).classes
    return [
        {
            **line(p["torch float32"], p[name], classes, rows),
            "engine": name,
            "cells": len(rows),
            "cells_per_s": round(len(rows) / seconds[name], 1),
        }
        for name in engines
    ]


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
