"""What models say of leukocytes of cameras that they were not trained on: of mostly healthy blood, few should be called blasts.

python benchmarks/cameras.py --fields FIELDS [--model NAME|DIR ...] [--per-camera 250]

FIELDS holds fields.csv (file, camera, label, box). The cells have no class: this tells of false alarms only, and of classes
that a camera makes up. The scales are those of the fields' cameras, from red cells.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter, defaultdict
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from slidescreen.classify import ClassifySettings, load_classifier
from slidescreen.geometry import Box, Point
from slidescreen.model import DEFAULT_MODEL, find_model
from slidescreen.patches import resample
from slidescreen.records import PATCH_UM
from slidescreen.slide import read_image
from slidescreen.taxonomy import BLAST

UM_PER_PX = {"bccd": 0.0725, "bcd": 0.0926, "raabin": 0.0549, "cellavision": 0.0950}
BATCH = 64


def patches_of(fields: Path, per_camera: int) -> dict[str, NDArray[np.uint8]]:
    with (fields / "fields.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["label"] == "WBC"]
    by_camera: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        by_camera[row["camera"]].append(row)
    rng = np.random.default_rng(0)
    return {
        camera: np.stack([cut(fields, own[i]) for i in rng.permutation(len(own))[:per_camera]])
        for camera, own in sorted(by_camera.items())
    }


def cut(fields: Path, row: dict[str, str]) -> NDArray[np.uint8]:
    """29 um around the middle of the box; mirrored where the field ends."""
    side = round(PATCH_UM / UM_PER_PX[row["camera"]])
    image = cv2.copyMakeBorder(read_image(fields / row["file"]), side, side, side, side, cv2.BORDER_REFLECT_101)
    x, y = ((float(row[f"{axis}min"]) + float(row[f"{axis}max"])) / 2 + side for axis in "xy")
    box = Box.around(Point(x, y), side)
    return resample(np.ascontiguousarray(image[box.y : box.bottom, box.x : box.right]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fields", type=Path, required=True)
    parser.add_argument("--model", nargs="+", default=[DEFAULT_MODEL])
    parser.add_argument("--per-camera", type=int, default=250)
    asked = parser.parse_args()
    cells = patches_of(asked.fields, asked.per_camera)
    print("| model | camera | cells | called blasts | mean P(blast) | refused | classes, % |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for model in asked.model:
        classifier = load_classifier(find_model(model), ClassifySettings())
        classes = classifier.card.classes
        blast = [classes.index(code) for code in sorted(BLAST)]
        for camera, patches in cells.items():
            judged = [classifier.judge(patches[i : i + BATCH]) for i in range(0, len(patches), BATCH)]
            p = np.concatenate([j.probabilities for j in judged])
            outliers = [j.outlier for j in judged if j.outlier is not None]
            lost = f"{100 * np.mean(np.concatenate(outliers) > 0):.1f} %" if outliers else "cannot tell"
            often = Counter(classes[i] for i in p.argmax(1)).most_common(5)
            said = ", ".join(f"{code} {100 * n / len(p):.0f}" for code, n in often)
            score = p[:, blast].sum(1)
            threshold = classifier.card.thresholds.blast
            high = f"{100 * np.mean(score >= threshold):.1f} % (P >= {threshold:g})"
            print(f"| {model} | {camera} | {len(p)} | {high} | {score.mean():.3f} | {lost} | {said} |")


if __name__ == "__main__":
    main()
