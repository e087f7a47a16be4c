"""What the models of a run's folds say, each of the images that it has not seen, from one side and from several.

python benchmarks/folds.py --data CELLS --run RUN --work FOLDER [--fold 1 2 3 4 5] [-o folds.json] [--decision decision.json]

Each image is looked at in 1, 2, 4 and 8 orientations (turns and their mirror images), whose probabilities are averaged, as
`--tta` does with 8. Calibration: the temperature is fitted on one half of a fold's patients and measured on the other, both
ways round; without it in the column before. What was looked at is kept in FOLDER, and the next run goes on from there.
Intervals: 95 %, 1,000 resamples of whole patients. `folds.json` is evidence for `slidescreen train release`.

`--decision`: from which P(blast) on a cell is best called a blast: where the blast fraction of patients with 20 leukocytes and
more is, on average, what the human said; counted as screening counts, from one side. For `slidescreen train release`; and for
each fold what the other folds alone would choose, for `benchmarks/patients.py`. P(atypical) stays at 0.5: a higher one would be
nearer to the human on average, and miss more.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidescreen.classify import softmax
from slidescreen.differential import DifferentialSettings
from slidescreen.engines import ClassifySettings, open_engine
from slidescreen.model import load_card
from slidescreen.taxonomy import BLAST, NOT_LEUKOCYTE
from slidescreen.training.classifier.calibrate import cross_calibrated, ece
from slidescreen.training.classifier.halves import halve
from slidescreen.training.classifier.images import LabelledImage, list_images
from slidescreen.training.classifier.judged import LEAST, MANY, balanced_accuracy, measure
from slidescreen.training.classifier.outputs import Looks, cut, named

ORIENTATIONS = {1: (0,), 2: (0, 2), 4: (0, 1, 2, 3), 8: range(8)}
"""How many -> which, see `classify.turned`."""


THRESHOLDS = tuple(round(0.2 + 0.05 * k, 2) for k in range(11))
LEUKOCYTES = 20
"""Patients with fewer say nothing of a fraction."""


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """Images that its model has not seen, their columns (n,), and its logits in 8 orientations (8, n, 15)."""

    images: list[LabelledImage]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]

    def averaged(self, orientations: Sequence[int]) -> NDArray[np.float32]:
        """(n, 15): logarithms of the mean probabilities."""
        mean = np.mean([softmax(self.logits[k]) for k in orientations], axis=0)
        return np.asarray(np.log(np.maximum(mean, 1e-12)), np.float32)


def look(run: Path, number: int, known: dict[str, LabelledImage], work: Path) -> tuple[Fold, tuple[str, ...]]:
    """A fold's images in all orientations, and the classes of its model."""
    folder = run / f"fold-{number}"
    card = load_card(folder / "model")
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        images = [known[row["file"]] for row in csv.DictReader(file) if known[row["file"]].label in card.classes]
    looks = Looks(open_engine(folder / "model", ClassifySettings("cpu")), card.sha256, work)
    names = named(images)
    logits = np.stack([looks.at(f"fold-{number}", names, cut(images), k).logits for k in range(8)])
    return Fold(images, np.array([card.classes.index(image.label) for image in images]), logits), card.classes


def rows(folds: Sequence[Fold], classes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row for each number of orientations and source, and for all sources together."""
    images = [image for fold in folds for image in fold.images]
    labels = np.concatenate([fold.labels for fold in folds])
    sources = np.array([image.source for image in images])
    for number, which in ORIENTATIONS.items():
        averaged = [fold.averaged(which) for fold in folds]
        raw = np.concatenate([softmax(logits) for logits in averaged])
        halves = [halve([image.patient or image.file for image in fold.images]) for fold in folds]
        each = zip(averaged, folds, halves, strict=True)
        calibrated = np.concatenate([cross_calibrated(logits, fold.labels, half) for logits, fold, half in each])
        for source in ("all", *np.unique(sources).tolist()):
            own = np.ones(len(images), bool) if source == "all" else sources == source
            m = measure([i for i, o in zip(images, own.tolist(), strict=True) if o], labels[own], raw[own], classes, LEAST)
            frequent = balanced_accuracy(labels[own], raw[own].argmax(1), np.ones((1, m.images)), MANY)[0]
            yield {
                "orientations": number,
                "source": source,
                "images": m.images,
                "balanced accuracy": limits(m.balanced),
                f"of classes with {MANY} images": round(float(frequent), 3),
                "blast AUC": limits(m.blast),
                "atypical AUC": limits(m.atypical),
                "ECE as it is": round(ece(raw[own], labels[own]), 3),
                "ECE calibrated": round(ece(calibrated[own], labels[own]), 3),
            }


def decide(folds: dict[int, Fold], classes: Sequence[str]) -> dict[str, Any]:
    """The threshold of P(blast) chosen on all folds, and `of_folds`: on the others of each."""
    said = {number: list(fractions(fold, classes)) for number, fold in folds.items()}
    bias = {number: np.array([reported - human for human, reported in own]) for number, own in said.items()}
    every = np.concatenate(list(bias.values()))

    def best(of: NDArray[np.float64]) -> int:
        away = np.abs(of.mean(0)).round(6)
        return min(range(len(THRESHOLDS)), key=lambda k: (away[k], abs(THRESHOLDS[k] - 0.5)))

    others = {n: best(np.concatenate([b for k, b in bias.items() if k != n] or [every])) for n in bias}
    kept = np.concatenate([own[:, others[number]] for number, own in bias.items()])
    plain, chosen = 100 * every[:, THRESHOLDS.index(0.5)], best(every)
    mean, half = 100 * kept.mean(), 196 * kept.std(ddof=1) / len(kept) ** 0.5
    return {
        "blast": THRESHOLDS[chosen],
        "atypical": 0.5,
        "chosen_on": (
            f"Chosen on unseen images of {len(every)} patients of {len(folds)} folds: the reported fraction less the human's "
            f"is then {100 * every[:, chosen].mean():+.1f} points on average (at 0.5 {plain.mean():+.1f}); chosen on the other "
            f"folds of each patient {mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})."
        ),
        "of_folds": {str(number): THRESHOLDS[k] for number, k in others.items()},
    }


def fractions(fold: Fold, classes: Sequence[str]) -> Iterator[tuple[float, NDArray[np.float64]]]:
    """Of each patient the blast fraction by the human, and as reported at each of `THRESHOLDS`."""
    blast, not_counted = ([classes.index(code) for code in codes] for codes in (BLAST, NOT_LEUKOCYTE))
    p = softmax(fold.logits[0])
    ranked = np.sort(p, axis=1)
    counted = (ranked[:, -1] - ranked[:, -2] >= DifferentialSettings().min_margin) & ~np.isin(p.argmax(1), not_counted)
    patients = np.array([image.patient for image in fold.images])
    for patient in np.unique(patients[patients != ""]):
        human = fold.labels[(patients == patient) & ~np.isin(fold.labels, not_counted)]
        p_blast = p[(patients == patient) & counted][:, blast].sum(1)
        if min(len(human), len(p_blast)) >= LEUKOCYTES:
            yield float(np.isin(human, blast).mean()), np.array([(p_blast >= t).mean() for t in THRESHOLDS])


def limits(value: tuple[float, tuple[float, float] | None]) -> dict[str, Any] | str:
    """A measure with its interval; a dash for what cannot be measured."""
    if np.isnan(value[0]):
        return "\N{EN DASH}"
    found: dict[str, Any] = {"value": round(value[0], 3)}
    return found if value[1] is None else found | {"ci95": [round(v, 3) for v in value[1]]}


def told(row: dict[str, Any]) -> str:
    """A row as a line of a table."""
    words = []
    for value in row.values():
        between = f" ({value['ci95'][0]:.3f}-{value['ci95'][1]:.3f})" if isinstance(value, dict) and "ci95" in value else ""
        words.append(f"{value['value']:.3f}{between}" if isinstance(value, dict) else str(value))
    return f"| {' | '.join(words)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="training run, split by patient")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--fold", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--decision", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    known = {image.file: image for image in list_images(options.data)}
    looked = [look(options.run, number, known, options.work) for number in options.fold]
    found = list(rows([fold for fold, _ in looked], looked[0][1]))
    print(f"| {' | '.join(found[0])} |", f"|{' --- |' * len(found[0])}", *map(told, found), sep="\n")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.decision:
        decision = decide({number: fold for number, (fold, _) in zip(options.fold, looked, strict=True)}, looked[0][1])
        print(f"P(blast) >= {decision['blast']:g}. {decision['chosen_on']} By fold: {decision['of_folds']}")
        options.decision.write_text(json.dumps(decision, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
