"""Measures the leukocyte detector: val fields per camera, beside the colour rules; Dice on held-back expert masks; time.

    python benchmarks/detection.py --fields FIELDS --masks MASKS

Besides labels as they are: those of `wrong_labels.csv` set right, which were found by looking at every miss and false alarm;
and of these only the cells that the border of their field does not cut, as in a scan, where cut ones are listed, not counted.
`--leave-one-out` also trains a detector without each camera and measures it on that camera (slow; checkpoints in `--work`).
`--write` puts the table into the model's card.
"""

from __future__ import annotations

import argparse
import csv
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from slidescreen.detect import Detector, DetectSettings, StainDetector, measure_stain
from slidescreen.detector_card import DEFAULT_DETECTOR
from slidescreen.detector_model import flops_per_px
from slidescreen.detector_network import NetworkDetector, load_detector
from slidescreen.logs import start_log
from slidescreen.model import find_model
from slidescreen.overlap import Ahead
from slidescreen.records import RgbImage
from slidescreen.slide import read_image
from slidescreen.training.detector.data import (
    CAMERAS,
    LEUKOCYTE,
    MASK_SETS,
    PLATELET,
    LabelledBox,
    LabelledField,
    list_cells,
    list_fields,
    list_giants,
    list_masks,
)
from slidescreen.training.detector.fit import TrainSettings, tuning_fields
from slidescreen.training.detector.measure import (
    Judged,
    Tally,
    accepted,
    dice_of_masks,
    judge,
    judge_fields,
    of_whole_cells,
    tally_by_camera,
    tally_cut,
)
from slidescreen.training.detector.release import make_detector, record_measures, train_detector

SCAN_MPX = 244.0
"""The scan of 3.9 gigapixels at the working level, 0.29 um/px."""
TILE_PX = 1408
TIMED_TILES = 16
SEEN_UM = (2.0, 3.0, 4.0, 6.0)
WRONG_LABELS = Path(__file__).with_name("wrong_labels.csv")
MISSING = "leukocyte without a box"


def colour_rules(image: RgbImage, um_per_px: float) -> Detector:
    step = max(1, round(0.3 / um_per_px))
    return StainDetector(measure_stain(image[::step, ::step].reshape(-1, 3), DetectSettings()), DetectSettings())


def cost(detector: Detector, fields: Path) -> dict[str, float]:
    """Seconds to search 244 Mpx of decoded tiles as the pipeline does, one tile looked at while another's bodies are drawn, the
    best of four: of fields at 0.29 um/px side by side, each with a leukocyte or more, which no smear holds so many of, and of
    glass, which is what the network alone takes."""
    first = [f for f in list_fields(fields, "val") if f.camera == "bccd"]
    rows = [np.hstack([read_image(first[(5 * r + c) % len(first)].path)[::4, ::4] for c in range(9)]) for r in range(12)]
    tile = np.ascontiguousarray(np.vstack(rows)[:TILE_PX, :TILE_PX])
    tiles = SCAN_MPX * 1e6 / TILE_PX**2
    costs: dict[str, float] = {"FLOP per px": round(flops_per_px())}
    for name, shown in (("fields", tile), ("glass", np.full_like(tile, 235))):
        costs[f"bodies in 244 Mpx of {name}"] = round(tiles * len(detector.find(shown, 0.29)))
        times = []
        for _ in range(4):
            start = time.perf_counter()
            for bodies in Ahead((detector.look(shown, 0.29) for _ in range(TIMED_TILES)), 1, threading.Event()):
                bodies()
            times.append((time.perf_counter() - start) / TIMED_TILES)
        costs[f"s per 244 Mpx of {name}"] = round(tiles * min(times), 1)
    return costs


def numbers(t: Tally) -> dict[str, float]:
    counts = {"labelled": t.labelled, "found": t.found, "false": t.false}
    return counts | {k: round(getattr(t, k), 4) for k in ("recall", "precision", "f1")}


def tables(name: str, judged: list[Judged], fields: Path) -> dict[str, dict[str, dict[str, float]]]:
    """By camera: labels as they are, set right, and of whole cells."""
    wrong = wrong_labels()
    right = [
        judge(set_right(one.field, wrong.get(one.field.path.relative_to(fields).as_posix(), [])), one.bodies) for one in judged
    ]
    kinds = {name: judged, f"{name}, labels set right": right, f"{name}, whole cells": [of_whole_cells(one) for one in right]}
    return {kind: {c: numbers(t) for c, t in tally_by_camera(own).items()} for kind, own in kinds.items()}


def wrong_labels() -> dict[str, list[tuple[str, LabelledBox]]]:
    """By file: what is wrong with boxes of label `WBC`, or that one is missing."""
    wrong: dict[str, list[tuple[str, LabelledBox]]] = {}
    with WRONG_LABELS.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            sides = (float(row[k]) for k in ("xmin", "ymin", "xmax", "ymax"))
            wrong.setdefault(row["file"], []).append((row["what"], LabelledBox("WBC", *sides)))
    return wrong


def set_right(field: LabelledField, wrong: list[tuple[str, LabelledBox]]) -> LabelledField:
    away = [box for what, box in wrong if what != MISSING]
    if not set(away) <= set(field.boxes):
        raise SystemExit(f"{WRONG_LABELS}: {field.path} has not all of {away}")
    kept = [box for box in field.boxes if box not in away]
    return replace(field, boxes=(*kept, *(box for what, box in wrong if what == MISSING)))


def measure(detector: NetworkDetector, options: argparse.Namespace) -> dict[str, Any]:
    val = list_fields(options.fields, "val")
    table: dict[str, Any] = tables("val fields", judge_fields(val, lambda *_: detector), options.fields)
    rules = tally_by_camera(judge_fields(val, colour_rules))
    table["val fields, colour rules"] = {c: numbers(rules[c]) for c in CAMERAS}
    held_back, outlining = list_masks(options.masks, "held back"), replace(detector, nuclei=True)
    for name in MASK_SETS:
        own = [m for m in held_back if m[0].name.startswith(f"set{name}_")]
        scores = np.array(dice_of_masks(own, lambda *_: outlining))
        cell, nucleus = (round(float(v), 4) for v in scores.mean(0))
        table[f"held-back masks, set {name}"] = {"images": len(own), "cell Dice": cell, "nucleus Dice": nucleus}
    if options.cells is not None:
        table["single cells not learned from"] = measure_cells(detector, options.cells)
    table["single cells of training fields that a border is made to cut, by what is seen"] = cut_cells(detector, options.fields)
    table["cost"] = cost(detector, options.fields)
    return table


def cut_cells(detector: Detector, fields: Path) -> dict[str, dict[str, int]]:
    """By what is seen of leukocytes of the training fields kept for choosing, and by side, how many are found."""
    sums = {(seen, sides): Tally() for seen in SEEN_UM for sides in ("left or top", "right or bottom")}
    for labelled in tuning_fields(fields):
        image = read_image(labelled.path)
        for seen, sides in sums:
            sums[seen, sides] += tally_cut(labelled, image, detector, seen, first=sides == "left or top")
    return {f"{seen:g} um, {sides}": {"images": t.labelled, "accepted": t.found} for (seen, sides), t in sums.items()}


def measure_cells(detector: Detector, folder: Path) -> dict[str, Any]:
    """Of held-back images of one cell each, how many are taken for a leukocyte."""
    cells, giants = list_cells(folder, "held back"), list_giants(folder)
    groups = {
        f"{s}, leukocytes": [c for c in cells if c.source == s and c.kind == LEUKOCYTE] for s in ("lmu", "pbc", "deepapl")
    }
    groups |= {"platelets": [c for c in cells if c.kind == PLATELET], "giant platelets": giants}
    return {name: {"images": len(own), "accepted": accepted(own, detector)} for name, own in groups.items()}


def leave_one_out(options: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, dict[str, dict[str, float]]] = {}
    for camera in options.left_out:
        settings = TrainSettings(steps=options.leave_one_out, left_out=camera)
        network, score = train_detector(options.fields, options.masks, options.cells, settings, options.work / camera)
        own = [f for f in list_fields(options.fields, "val") if f.camera == camera]
        left_out = make_detector(network, score)
        judged = judge_fields(own, lambda *_, detector=left_out: detector)
        for kind, found in tables("val fields of a camera not learned from", judged, options.fields).items():
            results.setdefault(kind, {})[camera] = found[camera] | {"steps": options.leave_one_out}
            print(f"{kind}: {camera} {found[camera]}", flush=True)
    return results


def print_table(measured: dict[str, Any]) -> None:
    print(f"{'':60} {'camera':12} {'cells':>5} {'found':>5} {'false':>5} {'recall':>7} {'precis.':>7} {'F1':>7}")
    for name, rows in measured.items():
        if name == "cost" or name.startswith("held-back"):
            print(f"{name:42} " + ", ".join(f"{k} {v:g}" for k, v in rows.items()))
            continue
        if name.startswith("single"):
            print(f"{name:42} " + "; ".join(f"{k}: {n['accepted']} of {n['images']} accepted" for k, n in rows.items()))
            continue
        for camera, n in ((c, n) for c, n in rows.items() if c in CAMERAS):
            counts = f"{n['labelled']:5} {n['found']:5} {n['false']:5}"
            print(f"{name:60} {camera:12} {counts} {n['recall']:7.3f} {n['precision']:7.3f} {n['f1']:7.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fields", type=Path, required=True)
    parser.add_argument("--masks", type=Path, required=True)
    parser.add_argument("--cells", type=Path)
    parser.add_argument("--model", default=DEFAULT_DETECTOR)
    parser.add_argument("--leave-one-out", type=int, default=0, metavar="STEPS")
    parser.add_argument(
        "--left-out", nargs="+", default=list(CAMERAS), choices=CAMERAS, help="the cameras to leave out in turn"
    )
    parser.add_argument("--work", type=Path, default=Path("build/leave-one-out"))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    start_log(verbose=False, as_json=False)
    folder = find_model(options.model)
    measured = measure(load_detector(folder, DetectSettings()), options)
    if options.leave_one_out:
        measured |= leave_one_out(options)
    print_table(measured)
    if options.write:
        record_measures(folder, measured)


if __name__ == "__main__":
    main()
