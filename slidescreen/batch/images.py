"""Images of single cells, and cells at given places of a scan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from slidescreen.batch.slides import SlideFailure, failure
from slidescreen.classify import Classifier, classify, gather
from slidescreen.errors import OpenError, UsageError
from slidescreen.geometry import Box
from slidescreen.patches import cut_patches, patch_of_image
from slidescreen.records import Cell
from slidescreen.scale import resolve_scale
from slidescreen.slide import open_slide, read_image, why_unreadable

IMAGE_SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"})


@dataclass(frozen=True, slots=True, eq=False)
class ImagePrediction:
    """The class probabilities, (15,) float32 in the model's order, of one image of a cell; the rest as in
    `records.Prediction`."""

    path: Path
    probabilities: NDArray[np.float32]
    outlier: float | None = None
    agreement: float | None = None


def list_images(arguments: Sequence[str]) -> list[Path]:
    """Files and folders (searched through) -> images, in order. Raises UsageError when there is none."""
    paths: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            paths += [p for p in sorted(path.rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
        else:
            paths.append(path)
    if not paths:
        raise UsageError(f"{', '.join(arguments)}: no images found (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    return paths


def classify_images(
    paths: Iterable[Path], um_per_px: float, classifier: Classifier
) -> Iterator[ImagePrediction | SlideFailure]:
    """Type images of single cells, the central 29 um of each; in order but for failures, which come as they are met."""
    held: list[tuple[Path, NDArray[np.uint8]]] = []
    for path in paths:
        try:
            held.append((path, patch_of_image(read_image(path), um_per_px)))
        except (OSError, ValueError, SyntaxError) as error:
            reason = why_unreadable(error, path)
            unreadable = OpenError(f"{path}: not an image that can be read ({reason}); mend it or leave it out")
            unreadable.__cause__ = error
            yield failure(path, unreadable, "open")
        if len(held) == classifier.batch_size:
            yield from _typed(held, classifier)
            held = []
    if held:
        yield from _typed(held, classifier)


def _typed(held: list[tuple[Path, NDArray[np.uint8]]], classifier: Classifier) -> Iterator[ImagePrediction]:
    judgement = classifier.judge(np.stack([pixels for _, pixels in held]))
    for (path, _), row in zip(held, judgement.rows(), strict=True):
        yield ImagePrediction(path, *row)


def type_cells_at(path: Path, boxes: Sequence[Box], classifier: Classifier) -> list[str]:
    """The labels of the cells in the middle of given boxes (level-0 px) of a scan."""
    with open_slide(path) as slide:
        scale = resolve_scale(path, slide.stated_scale, None, slide.details.other_scales)
        cells = [Cell(box.centre, box, 0.0) for box in boxes]
        patches = cut_patches(slide, cells, scale)
        predictions = classify(gather(patches, classifier.batch_size), classifier)
        labels = []
        for prediction in predictions:
            p = prediction.probabilities
            labels.append("" if p is None else classifier.card.classes[int(p.argmax())])
    return labels
