"""What a cheaper network that is asked first saves, and what it costs: blasts that it calls mature.

    python benchmarks/cascade.py --data CELLS --unseen FILES.csv [--cheap MODEL | --cheap-px 96] [--json cascade.json]

FILES.csv: a column `file` of images that neither model was trained on. The cheap network is a model, or the full one with a
smaller input. For each threshold: the share of cells it settles, the blasts (by label) among them, and what becomes of the
sensitivity for blasts at P(blast) >= 0.5.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path

import numpy as np
from agreement import patches, with_input
from telling import tell

from slidescreen.classify import ClassifySettings, First, load_classifier
from slidescreen.model import DEFAULT_MODEL, find_model
from slidescreen.taxonomy import BLAST

THRESHOLDS = (0.8, 0.9, 0.95, 0.98, 0.99)
AT_ONCE = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--unseen", type=Path, required=True)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--cheap", default="")
    parser.add_argument("--cheap-px", type=int, default=96)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with asked.unseen.open(newline="") as file:
        unseen = {row["file"] for row in csv.DictReader(file)}
    with (asked.data / "cells.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["file"] in unseen and row["label"] != "-"]
    with tempfile.TemporaryDirectory() as folder:
        full = load_classifier(find_model(asked.model), ClassifySettings("cpu"))
        small = find_model(asked.cheap) if asked.cheap else with_input(find_model(asked.model), asked.cheap_px, Path(folder))
        cheap = load_classifier(small, ClassifySettings("cpu"))
        judged, seconds = [], [0.0, 0.0]
        for start in range(0, len(rows), AT_ONCE):
            some = patches(asked.data, rows[start : start + AT_ONCE])
            both = []
            for i, classifier in enumerate((cheap, full)):
                began = time.perf_counter()
                both.append(classifier.judge(some))
                seconds[i] += time.perf_counter() - began
            settled = [First(cheap, threshold).settles(both[0]) for threshold in THRESHOLDS]
            p = [found.probabilities for found in both]
            judged.append((*p, np.stack(settled, 1)))
    early, late, settled = (np.concatenate(parts) for parts in zip(*judged, strict=True))
    blast = np.array([row["label"] in BLAST for row in rows])
    at = {name: [i for i, code in enumerate(c.card.classes) if code in BLAST] for name, c in (("cheap", cheap), ("full", full))}
    called = {"cheap": early[:, at["cheap"]].sum(1) >= 0.5, "full": late[:, at["full"]].sum(1) >= 0.5}
    sources = [row["source"] for row in rows]
    share = seconds[0] / seconds[1]
    told = {
        "images": {source: sources.count(source) for source in sorted(set(sources))},
        "blasts": int(blast.sum()),
        "cheap": f"{small.name}, {cheap.card.input_px} px",
        "full": f"{full.card.name}, {full.card.input_px} px",
        "cost of the cheap one": round(share, 3),
        "sensitivity of the full one": round(float(called["full"][blast].mean()), 4),
        "thresholds": [
            {
                "threshold": threshold,
                "settled": round(float(done.mean()), 3),
                "blasts settled as mature": int((done & blast).sum()),
                "of them called by the full one": int((done & blast & called["full"]).sum()),
                "sensitivity": round(float(np.where(done, called["cheap"], called["full"])[blast].mean()), 4),
                "times as fast": round(1 / (share + 1 - float(done.mean())), 2),
            }
            for threshold, done in zip(THRESHOLDS, settled.T, strict=True)
        ],
    }
    tell(told, asked.json)


if __name__ == "__main__":
    main()
