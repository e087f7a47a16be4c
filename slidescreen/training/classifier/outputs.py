"""What a network says of sets of pictures, run once and kept, so that fitting and measuring can be done again without it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from slidescreen.atomic import replacing
from slidescreen.classify import turned
from slidescreen.engines import Engine, Outputs
from slidescreen.patches import patch_of_image
from slidescreen.records import RgbImage
from slidescreen.slide import read_image
from slidescreen.training.classifier.images import LabelledImage

BATCH = 64


class Looks:
    """Runs `engine` over named sets of pictures. What it said lies in `folder`, and is used again where `weights` (sha256) and
    the names of the pictures are the same."""

    def __init__(self, engine: Engine, weights: str, folder: Path) -> None:
        self._engine, self._weights, self._folder = engine, weights, folder

    def at(self, name: str, pictures: Sequence[str], pixels: Iterable[RgbImage], orientation: int = 0) -> Outputs:
        """Outputs for `pixels`, (400, 400, 3) uint8 RGB each, whose names are `pictures`; as they lie, or turned."""
        text = "\n".join([self._weights, self._engine.name, str(orientation), *pictures])
        key = hashlib.sha256(text.encode()).hexdigest()
        path = self._folder / f"{name}-{orientation}.safetensors"
        kept = _read(path, key)
        if kept is not None:
            return kept
        parts = [self._engine.run(turned(batch, orientation)) for batch in _batches(pixels)]
        empty = np.zeros((0, 0), np.float32)
        outputs = Outputs(*(np.concatenate(each) for each in zip(*parts, strict=True))) if parts else Outputs(empty, empty)
        with replacing(path) as partial:
            save_file({k: np.ascontiguousarray(v) for k, v in outputs._asdict().items()}, partial, {"key": key})
        return outputs


def cut(images: Iterable[LabelledImage]) -> Iterator[RgbImage]:
    """The pictures of labelled images, as screening would see them."""
    for image in images:
        yield patch_of_image(read_image(image.path), image.um_per_px)


def named(images: Sequence[LabelledImage]) -> list[str]:
    """Names for `Looks`, which change when a file, its size, its time of change or its scale does."""
    states = [image.path.stat() for image in images]
    return [f"{i.file} {i.um_per_px:g} {s.st_size} {s.st_mtime_ns}" for i, s in zip(images, states, strict=True)]


def _batches(pixels: Iterable[RgbImage]) -> Iterator[NDArray[np.uint8]]:
    waiting = iter(pixels)
    while some := list(islice(waiting, BATCH)):
        yield np.stack(some)


def _read(path: Path, key: str) -> Outputs | None:
    try:
        with safe_open(path, "np") as file:
            if file.metadata().get("key") == key:
                return Outputs(file.get_tensor("logits"), file.get_tensor("features"))
    except (OSError, SafetensorError):
        return None
    return None
