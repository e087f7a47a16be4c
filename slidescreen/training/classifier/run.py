"""A training run: images in, and for each fold a model and its predictions of images it has not seen.

RUN/run.json               recipe, split, data, versions
RUN/folds.csv              which image is tested in which fold
RUN/fold-1/model/          card and weights, ready to screen with
RUN/fold-1/predictions.csv of the images that are tested in this fold; written last
RUN/fold-1/                checkpoint, metrics.jsonl, tensorboard/
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import nn

from slidescreen.atomic import write_text
from slidescreen.classify import ClassifySettings, load_classifier
from slidescreen.errors import UsageError
from slidescreen.model import CARD, find_model, load_card, load_network, models_folder, write_model
from slidescreen.networks import FROM_IMAGENET, build_network, start_from_imagenet
from slidescreen.patches import patch_of_image
from slidescreen.records import PATCH_UM
from slidescreen.slide import read_image
from slidescreen.taxonomy import ATYPICAL, BLAST, CODES, NOT_A_LEUKOCYTE, probability_of
from slidescreen.training.classifier.fit import Lesson, Step, fit
from slidescreen.training.classifier.folds import Split, split_images
from slidescreen.training.classifier.images import LabelledImage
from slidescreen.training.classifier.packed import PackedImages, pack_images
from slidescreen.training.classifier.recipe import Recipe

log = logging.getLogger(__name__)

RUN: Final = "run.json"
FOLDS: Final = "folds.csv"
PREDICTIONS: Final = "predictions.csv"
COLUMNS: Final = ("file", "gold", "fold", "source", "patient", "reannotation_1", "reannotation_2", "label")


@dataclass(frozen=True, slots=True)
class FoldDone:
    """A trained fold. `measured`: by name, on the images that it had not seen; None where that is undefined."""

    fold: int
    folder: Path
    images: int
    measured: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class RunSettings:
    """`out`: the run's folder. `packed`: where packed images lie or go. `split`, `folds`: how images are dealt out,
    see `split_images`. `only`:
    folds to train, all when empty. `resume`: go on in a folder that holds a run."""

    out: Path
    packed: Path
    device: str
    split: str = "stratified"
    folds: int = 5
    only: tuple[int, ...] = ()
    resume: bool = False


def train_folds(
    images: Sequence[LabelledImage],
    recipe: Recipe,
    settings: RunSettings,
    start: Callable[[], nn.Module],
    tell: Callable[[int, Step], None] = lambda _fold, _step: None,
) -> Iterator[FoldDone]:
    """Train and test fold after fold; finished ones of a run that goes on are passed over. `start` makes the network that each
    fold begins with; `tell` is told fold and step.

    Raises UsageError when the images cannot be split, or the folder holds another run, or one that is not to be gone on with.
    """
    asked = split_images(images, settings.split, settings.folds, recipe.seed)  # told before images are read
    for fold in settings.only:
        if not 1 <= fold <= asked.folds:
            raise UsageError(f"--fold {fold}: must lie in 1-{asked.folds}")
    packed = pack_images(images, recipe.input_px, settings.packed, lambda n: log.info("%d of %d packed", n, len(images)))
    split = split_images(images, settings.split, settings.folds, recipe.seed, packed.twin_of)
    for note in split.notes:
        log.warning("%s", note)
    _open_run(images, split, recipe, settings, packed)
    for fold in settings.only or range(1, split.folds + 1):
        folder = settings.out / f"fold-{fold}"
        if (folder / PREDICTIONS).is_file():
            log.info("fold %d is done already", fold)
            continue
        torch.manual_seed(recipe.seed)
        began = time.monotonic()
        network = fit(start(), _lesson(images, split, packed, fold), recipe, folder, settings.device, lambda s: tell(fold, s))  # noqa: B023
        log.info("fold %d learned in %.0f s", fold, time.monotonic() - began)
        yield _finish(network, images, split, recipe, settings, packed, fold)


def starter(recipe: Recipe) -> Callable[[], nn.Module]:
    """What makes the network that a fold begins with: random weights, those of a model with its last layer, or those of a file
    (of ImageNet, say) without.

    Raises UsageError when the recipe's architecture cannot start from them, ModelError when they cannot be used.
    """
    if not recipe.start:
        return lambda: build_network(recipe.architecture, len(CODES))
    if recipe.start.endswith(".safetensors"):
        if recipe.architecture not in FROM_IMAGENET:
            able = " and ".join(FROM_IMAGENET)
            raise UsageError(f"start {recipe.start}: only {able} can start from weights, not {recipe.architecture}")
        path = next((p for p in (Path(recipe.start), models_folder() / recipe.start) if p.is_file()), Path(recipe.start))
        return lambda: start_from_imagenet(path, len(CODES), recipe.architecture)
    folder = find_model(recipe.start)
    card = load_card(folder)
    mean, std = recipe.normalisation
    if (card.architecture, card.classes, card.mean, card.std) != (recipe.architecture, CODES, (mean,) * 3, (std,) * 3):
        raise UsageError(f"start {recipe.start}: is of {card.architecture}, or has other classes or colours than the recipe")
    return lambda: load_network(folder, card).train()


def usable_images(images: Iterable[LabelledImage]) -> list[LabelledImage]:
    """Those of the 15 classes. Raises UsageError when there are none."""
    kept = [image for image in images if image.label != NOT_A_LEUKOCYTE]
    if not kept:
        raise UsageError("no image is labelled with one of the 15 classes; check the labels")
    return kept


def _lesson(images: Sequence[LabelledImage], split: Split, packed: PackedImages, fold: int) -> Lesson:
    sources = sorted({image.source for image in images})
    labels = np.array([CODES.index(image.label) for image in images])
    groups = np.array([sources.index(image.source) for image in images])
    rows = split.train(fold)
    missing = [code for i, code in enumerate(CODES) if i not in labels[rows]]
    if missing:
        log.warning("fold %d: no images of %s to learn from; the model will never say so", fold, ", ".join(missing))
    return Lesson(packed, labels, groups, rows)


def _open_run(
    images: Sequence[LabelledImage], split: Split, recipe: Recipe, settings: RunSettings, packed: PackedImages
) -> None:
    """Write `run.json` and `folds.csv`, or see that those there are of the same run."""
    table = [[image.file, image.label, image.source, image.patient, str(fold)] for image, fold in _dealt(images, split)]
    told = {
        "name": settings.out.resolve().name,
        "architecture": recipe.architecture,
        "split": split.kind,
        "folds": split.folds,
        "notes": list(split.notes),
        "recipe": recipe.plain(),
        "data": _data(images, packed) | {"folds_sha256": hashlib.sha256(repr(table).encode()).hexdigest()},
    }
    path = settings.out / RUN
    if path.is_file():
        if not settings.resume:
            raise UsageError(
                f"{settings.out}: holds a training run; --resume goes on with it, or choose another folder with -o"
            )
        held = json.loads(path.read_text(encoding="utf-8"))
        for key in ("recipe", "split", "folds", "data"):
            if held.get(key) != json.loads(json.dumps(told[key])):
                raise UsageError(f"{settings.out}: is a run with another {key}; choose another folder with -o")
        return
    made = {"version": version("slidescreen"), "torch": torch.__version__, "device": settings.device}
    write_text(settings.out / FOLDS, _csv([["file", "label", "source", "patient", "fold"], *table]))
    write_text(path, json.dumps(told | made | {"created": datetime.now(UTC).isoformat(timespec="seconds")}, indent=1) + "\n")


def _dealt(images: Sequence[LabelledImage], split: Split) -> Iterator[tuple[LabelledImage, int]]:
    yield from zip(images, split.fold.tolist(), strict=True)


def _data(images: Sequence[LabelledImage], packed: PackedImages) -> dict[str, Any]:
    def counted(values: Iterable[str]) -> dict[str, int]:
        found = sorted(values)
        return {value: found.count(value) for value in sorted(set(found))}

    return {
        "images": len(images),
        "patients": len({(image.source, image.patient) for image in images if image.patient}),
        "per_class": counted(image.label for image in images),
        "per_source": counted(image.source for image in images),
        "pixels_sha256": packed.sha256,
    }


def _finish(
    network: nn.Module,
    images: Sequence[LabelledImage],
    split: Split,
    recipe: Recipe,
    settings: RunSettings,
    packed: PackedImages,
    fold: int,
) -> FoldDone:
    """Write the model, type the fold's test images with it as screening would, write what it said, and put the results in
    the card."""
    folder = settings.out / f"fold-{fold}"
    name = f"{settings.out.resolve().name}-fold-{fold}"
    card = _card(name, recipe, split, _data(images, packed), fold)
    shutil.rmtree(folder / "model", ignore_errors=True)  # of a run that was killed before it wrote predictions
    write_model(folder / "model", network, card)
    test = [images[i] for i in split.test(fold)]
    probabilities = predict(test, folder / "model", settings.device)
    measured = measure([image.label for image in test], probabilities)
    said = {k: round(v, 3) for k, v in measured.items() if v is not None}
    kept = json.loads((folder / "model" / CARD).read_text(encoding="utf-8"))
    write_text(folder / "model" / CARD, json.dumps(kept | {"measured": said | {"images": str(len(test))}}, indent=1) + "\n")
    header = [*COLUMNS, *(f"p_{code}" for code in CODES), "p_blast", "p_atypical"]
    write_text(folder / PREDICTIONS, _csv([header, *_rows(test, probabilities, fold)]))
    return FoldDone(fold, folder, len(test), measured)


def _reference(device: str) -> ClassifySettings:
    """Torch in float32: what a model is measured with does not depend on what is installed."""
    return ClassifySettings("cuda" if device.startswith("cuda") else "cpu", engine="torch", precision="float32")


def predict(images: Sequence[LabelledImage], model: Path, device: str) -> NDArray[np.float32]:
    """(n, 15) probabilities in the order of `CODES`, each image cut and typed as in screening."""
    classifier = load_classifier(model, _reference(device))
    order = [classifier.card.classes.index(code) for code in CODES]
    found = []
    for start in range(0, len(images), classifier.batch_size):
        batch = images[start : start + classifier.batch_size]
        patches = np.stack([patch_of_image(read_image(image.path), image.um_per_px) for image in batch])
        found.append(classifier.probabilities(patches)[:, order])
    return np.concatenate(found)


def measure(gold: Sequence[str], probabilities: NDArray[np.float32]) -> dict[str, float | None]:
    """Balanced accuracy over the classes there are, and the AUC of the two questions; None where there is one kind only."""
    label = [CODES[i] for i in probabilities.argmax(1)]
    measured: dict[str, float | None] = {}
    known = sorted(set(gold))
    recall = [np.mean([b == code for a, b in zip(gold, label, strict=True) if a == code]) for code in known]
    measured["balanced accuracy"] = float(np.mean(recall))
    for name, members in (("blast AUC", BLAST), ("atypical AUC", ATYPICAL)):
        truth = [code in members for code in gold]
        score = [probability_of(members, p, CODES) for p in probabilities]
        measured[name] = float(roc_auc_score(truth, score)) if 0 < sum(truth) < len(truth) else None
    return measured


def _card(name: str, recipe: Recipe, split: Split, data: dict[str, Any], fold: int) -> dict[str, Any]:
    mean, std = recipe.normalisation
    apart = {
        "patient": "no patient in two folds",
        "source": "no source in two folds",
        "file": "folds from a file",
    }.get(split.kind, "images of one patient may lie in several folds")
    sources = ", ".join(f"{source or 'source unnamed'} {n}" for source, n in data["per_source"].items())
    return {
        "name": name,
        "architecture": recipe.architecture,
        "classes": list(CODES),
        "patch_um": PATCH_UM,
        "input_px": recipe.input_px,
        "mean": [mean] * 3,
        "std": [std] * 3,
        "training": {"recipe": recipe.plain(), "fold": fold, "folds": split.folds, "split": split.kind},
        "training_data": f"{data['images']} images ({sources}), all but fold {fold} of {split.folds}; {apart}.",
        "licence": "Research use; the terms of the training data apply.",
        "measured": {},
        "limits": "Measured on the images of one fold only. Not for diagnosis.",
    }


def _rows(images: Sequence[LabelledImage], probabilities: NDArray[np.float32], fold: int) -> Iterator[list[str]]:
    for image, p in zip(images, probabilities, strict=True):
        named = (image.file, image.label, str(fold), image.source, image.patient, image.reannotation_1, image.reannotation_2)
        sums = (probability_of(BLAST, p, CODES), probability_of(ATYPICAL, p, CODES))
        yield [*named, CODES[int(p.argmax())], *(f"{v:.6f}" for v in (*p.tolist(), *sums))]


def _csv(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
