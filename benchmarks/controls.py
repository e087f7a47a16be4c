"""Does the model look at the cell? The same unseen images whole, without the cell, and with nothing but the cell.

python benchmarks/controls.py --data CELLS --run RUN --fold 1 [--model NAME|DIR] [--per-source 400] [-o controls.json]
python benchmarks/controls.py --data CELLS --images UNSEEN.csv --model NAME|DIR

Images are those of a fold that a training run tested, or those in the column `file` of a CSV file: none that the model
learned from. Outlines are those of the leukocyte detector on the whole image, made 1 um wider all around; the cell is the body
that lies over the middle of the image, else the nearest. What is hidden gets the plain colour of the ground of that patch, so
that the shape of a hole still tells the size of the cell. The disc does not: it is the same for all, the largest that a patch
holds, and cells that reach beyond it are left out there.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from slidescreen.classify import Classifier, ClassifySettings, load_classifier
from slidescreen.detect import Body, Detector, DetectSettings, measure_stain
from slidescreen.detector_card import DEFAULT_DETECTOR
from slidescreen.detector_network import load_detector
from slidescreen.errors import UsageError
from slidescreen.evaluation import metrics
from slidescreen.evaluation.bootstrap import RESAMPLES, SEED, group_units, interval
from slidescreen.evaluation.evaluate import DECISIONS, evaluate
from slidescreen.evaluation.predictions import UNKNOWN, Predictions, is_member
from slidescreen.evaluation.result import Estimate
from slidescreen.model import DEFAULT_MODEL, find_model, read_card
from slidescreen.patches import patch_of_image
from slidescreen.records import PATCH_PX, RgbImage
from slidescreen.slide import read_image
from slidescreen.taxonomy import CODES
from slidescreen.training.classifier.images import LabelledImage, list_images
from slidescreen.training.classifier.run import usable_images

WIDER_UM = 1.0
GREY = np.full(3, 200.0)
AT_ONCE = 32
CONDITIONS = {
    "whole": "the image as it is",
    "no cell": "background only: the cell hidden along its outline",
    "no leukocyte": "background only: the cell and every other leukocyte hidden along their outlines",
    "no leukocyte, disc": "background only: a disc of 29 um hidden, and every other leukocyte",
    "cell only": "everything but the cell hidden, in the colour of the patch's ground",
    "cell only, grey": "everything but the cell hidden, in one grey for all images",
}


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """A patch and what is where in it; masks are (400, 400). `ground`: (3,) RGB. `held`: whether the cell's outline holds the
    middle of the image."""

    patch: RgbImage
    cell: NDArray[np.bool_]
    leukocytes: NDArray[np.bool_]
    ground: NDArray[np.float64]
    held: bool

    @property
    def fits(self) -> bool:
        """Whether the disc holds the whole cell."""
        return not bool((self.cell & ~disc()).any())


def disc() -> NDArray[np.bool_]:
    """The largest disc in a patch."""
    y, x = np.mgrid[:PATCH_PX, :PATCH_PX] + 0.5
    return np.asarray(np.hypot(y - PATCH_PX / 2, x - PATCH_PX / 2) <= PATCH_PX / 2)


def take_apart(image: RgbImage, um_per_px: float, detector: Detector) -> Parts | None:
    """The central 29 um of an image of one cell, and what is where in it; None where the detector sees no body."""
    bodies = detector.find(image, um_per_px)
    if not bodies:
        return None
    middle = (image.shape[1] / 2, image.shape[0] / 2)
    depth = [cv2.pointPolygonTest(_polygon(body), middle, True) for body in bodies]
    chosen = int(np.argmax(depth))
    masks = [_mask(body, image, um_per_px) for body in bodies]
    leukocytes = [m for i, m in enumerate(masks) if i == chosen or not bodies[i].refusal]
    patch = patch_of_image(image, um_per_px)
    free = patch[~_in_patch(np.any(masks, axis=0), um_per_px)]
    ground = measure_stain(free if len(free) > 500 else patch.reshape(-1, 3), DetectSettings()).glass
    cell, all_of_them = (_in_patch(m, um_per_px) for m in (masks[chosen], np.any(leukocytes, axis=0)))
    return Parts(patch, cell, all_of_them, ground, depth[chosen] >= 0)


def _polygon(body: Body) -> NDArray[np.float32]:
    return np.array([(p.x, p.y) for p in body.outline], np.float32)


def _mask(body: Body, image: RgbImage, um_per_px: float) -> NDArray[np.bool_]:
    drawn = np.zeros(image.shape[:2], np.uint8)
    cv2.fillPoly(drawn, [np.rint(_polygon(body)).astype(np.int32)], 1)
    side = 2 * round(WIDER_UM / um_per_px) + 1
    return np.asarray(cv2.dilate(drawn, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))) > 0)


def _in_patch(mask: NDArray[np.bool_], um_per_px: float) -> NDArray[np.bool_]:
    """A mask of the image as one of its patch; beyond the image there is nothing."""
    shown = np.where(mask[..., None], 0, 255).astype(np.uint8).repeat(3, axis=2)
    return patch_of_image(shown, um_per_px)[..., 0] < 128


def variants(parts: Parts) -> dict[str, RgbImage]:
    """The patch in every condition."""

    def hidden(where: NDArray[np.bool_], colour: NDArray[np.float64] = parts.ground) -> RgbImage:
        return np.where(where[..., None], np.rint(colour).astype(np.uint8), parts.patch)

    return {
        "whole": parts.patch,
        "no cell": hidden(parts.cell),
        "no leukocyte": hidden(parts.leukocytes),
        "no leukocyte, disc": hidden(parts.leukocytes | disc()),
        "cell only": hidden(~parts.cell),
        "cell only, grey": hidden(~parts.cell, GREY),
    }


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """What was shown and said. `said`: condition -> (n, 15) probabilities in the order of `CODES`, row for row as `images`."""

    images: list[LabelledImage]
    said: dict[str, NDArray[np.float64]]
    grounds: NDArray[np.float64]
    fits: NDArray[np.bool_]
    held: NDArray[np.bool_]
    without_body: list[LabelledImage]


def show(images: Sequence[LabelledImage], detector: Detector, classifier: Classifier) -> Shown:
    """Type every image in every condition."""
    order = [classifier.card.classes.index(code) for code in CODES]
    kept: list[LabelledImage] = []
    without: list[LabelledImage] = []
    told: list[tuple[NDArray[np.float64], bool, bool]] = []
    said: dict[str, list[NDArray[np.float32]]] = {name: [] for name in CONDITIONS}
    for start in range(0, len(images), AT_ONCE):
        batch: list[Parts] = []
        for image in images[start : start + AT_ONCE]:
            parts = take_apart(read_image(image.path), image.um_per_px, detector)
            (without if parts is None else kept).append(image)
            batch += [parts] if parts else []
        pictures = [variants(parts) for parts in batch]
        told += [(parts.ground, parts.fits, parts.held) for parts in batch]
        for name in CONDITIONS if batch else ():
            said[name].append(classifier.probabilities(np.stack([each[name] for each in pictures]))[:, order])
        print(f"{min(start + AT_ONCE, len(images))} of {len(images)}", end="\r", flush=True)
    grounds, fits, held = (np.array(column) for column in zip(*told, strict=True))
    return Shown(kept, {k: np.concatenate(v).astype(np.float64) for k, v in said.items()}, grounds, fits, held, without)


def as_predictions(images: Sequence[LabelledImage], p: NDArray[np.float64]) -> Predictions:
    """In the form that `evaluate` takes, as one fold."""
    return Predictions(
        inputs=(),
        run={},
        left_out=0,
        gold=np.array([CODES.index(image.label) for image in images]),
        label=p.argmax(1),
        probabilities=p,
        fold=np.ones(len(images), np.int64),
        source=np.array([image.source for image in images]),
        patient=np.array([image.patient for image in images]),
        reannotations=np.full((len(images), 2), UNKNOWN),
    )


def measured(predictions: Predictions) -> list[dict[str, Any]]:
    """The measures of all images together and of each source, with their intervals, a row each."""
    found = evaluate(predictions, "control")
    blast, atypical = found.decisions
    together = {"source": "all together", "images": len(predictions), "patients": found.patients}
    rows = [together | {"blast AUC": _plain(blast.auc), "atypical AUC": _plain(atypical.auc)}]
    for each in found.sources:
        rows.append(
            {
                "source": each.source,
                "images": each.images,
                "patients": each.patients,
                "blast AUC": _plain(each.blast_auc),
                "atypical AUC": _plain(each.atypical_auc),
                "balanced accuracy": _plain(each.balanced_accuracy),
                **{f"{key} AUC within patients": within_patients(predictions, key, each.source) for key in DECISIONS},
            }
        )
    return rows


def _plain(estimate: Estimate) -> dict[str, Any]:
    return {"value": estimate.value, "ci95": estimate.ci95}


def within_patients(predictions: Predictions, key: str, source: str) -> dict[str, Any]:
    """AUC over pairs of images of the same patient: what a patient's own ground, stain and light cannot give away."""
    members, rng = DECISIONS[key], np.random.default_rng(SEED)
    score, positive = predictions.probability(members), is_member(predictions.gold, members)
    wins, pairs = [], []
    for patient in np.unique(predictions.patient[predictions.source == source]).tolist():
        rows = (predictions.source == source) & (predictions.patient == patient)
        both = int(positive[rows].sum()) * int((~positive[rows]).sum())
        if patient and both:
            area = float(metrics.auc(score[rows], positive[rows], np.ones((1, int(rows.sum()))))[0])
            wins.append(area * both)
            pairs.append(float(both))
    if not pairs:
        return {"value": None, "ci95": None}
    drawn = rng.integers(0, len(pairs), (RESAMPLES, len(pairs)))
    resampled = np.array(wins)[drawn].sum(1) / np.array(pairs)[drawn].sum(1)
    limits = interval(resampled) if len(pairs) >= 5 else None
    return {"value": sum(wins) / sum(pairs), "ci95": limits}


def source_told(given: NDArray[np.float64], images: Sequence[LabelledImage]) -> float | None:
    """How well the source can be told from (n, d) numbers: balanced accuracy of a logistic regression, patients kept together,
    five folds. None for one source."""
    sources = np.array([image.source for image in images])
    if len(np.unique(sources)) < 2:
        return None
    units = group_units(sources, np.array([image.patient for image in images])).unit
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced"))
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    return float(balanced_accuracy_score(sources, cross_val_predict(model, given, sources, groups=units, cv=folds)))


def unseen_images(options: argparse.Namespace) -> list[LabelledImage]:
    """The images that were asked for, at most so many of a source, the same each time."""
    path = options.images or options.run / f"fold-{options.fold}" / "predictions.csv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            names = {row["file"] for row in csv.DictReader(file)}
    except (OSError, KeyError) as error:
        raise UsageError(f"{path}: needs a column file ({error})") from error
    images = [image for image in usable_images(list_images(options.data)) if image.file in names]
    kept = []
    for source in sorted({image.source for image in images}):
        own = [image for image in images if image.source == source]
        chosen = np.random.default_rng(0).permutation(len(own))[: options.per_source]
        kept += [own[i] for i in sorted(chosen.tolist())]
    return kept


def unseeing_model(options: argparse.Namespace) -> Path:
    """The model's folder. Raises UsageError when its card says that it tested another fold."""
    folder = find_model(
        options.model or (str(options.run / f"fold-{options.fold}" / "model") if options.run else DEFAULT_MODEL)
    )
    training = read_card(folder).get("training")
    fold = training.get("fold") if isinstance(training, dict) else None
    if options.run and fold not in (None, options.fold):
        raise UsageError(f"{folder}: was tested on fold {fold} and learned from fold {options.fold}; give --fold {fold}")
    return folder


def run_controls(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is written."""
    detector = load_detector(find_model(DEFAULT_DETECTOR), DetectSettings())
    classifier = load_classifier(unseeing_model(options), ClassifySettings())
    images = unseen_images(options)
    shown = show(images, detector, classifier)
    results: list[dict[str, Any]] = []
    for name in CONDITIONS:
        rows = shown.fits if name.endswith("disc") else np.ones(len(shown.images), bool)
        predictions = as_predictions(shown.images, shown.said[name]).only(rows)
        results += [{"condition": name} | row for row in measured(predictions)]
    of_background = np.log(np.maximum(shown.said["no leukocyte"], 1e-6))
    return {
        "model": classifier.card.name,
        "sha256": classifier.card.sha256,
        "images": len(shown.images),
        "at most of a source, drawn by lot": options.per_source,
        "outlines": f"{read_card(find_model(DEFAULT_DETECTOR))['name']}, {WIDER_UM:g} um wider",
        "no body found, left out": len(shown.without_body),
        "outline beside the middle of the image": int((~shown.held).sum()),
        "cell reaches beyond the disc, left out there": int((~shown.fits).sum()),
        "source told from the colour of the ground": source_told(shown.grounds, shown.images),
        "source told from what the model says of the background": source_told(of_background, shown.images),
        "source told by chance": 1 / len({image.source for image in shown.images}),
        "conditions": CONDITIONS,
        "results": results,
    }


def table(found: dict[str, Any]) -> Iterator[str]:
    """The result in lines."""
    columns = ("blast AUC", "blast AUC within patients", "atypical AUC", "balanced accuracy")
    yield f"| condition | source | images | {' | '.join(columns)} |"
    yield "| --- " * (3 + len(columns)) + "|"
    for row in found["results"]:
        cells = (row["condition"], row["source"], str(row["images"]), *(_said(row.get(name)) for name in columns))
        yield f"| {' | '.join(cells)} |"
    for name, value in found.items():
        if name not in ("results", "conditions"):
            yield f"{name}: {f'{value:.3f}' if isinstance(value, float) else value}"


def _said(measure: dict[str, Any] | None) -> str:
    if measure is None or measure["value"] is None:
        return "-"
    limits = measure["ci95"]
    return f"{measure['value']:.3f}" + (f" ({limits[0]:.3f}-{limits[1]:.3f})" if limits else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="labelled images, as for slidescreen train classifier")
    unseen = parser.add_mutually_exclusive_group(required=True)
    unseen.add_argument("--run", type=Path, help="training run")
    unseen.add_argument("--images", type=Path, help="CSV file with the column file")
    parser.add_argument("--fold", type=int, default=1)
    parser.add_argument("--model", default="", help="default: the fold's own, or the default model")
    parser.add_argument("--per-source", type=int, default=400, help="at most so many images of a source, drawn by lot")
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args()
    found = run_controls(options)
    print("\n".join(table(found)))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
