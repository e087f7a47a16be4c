"""A labelled set packed once, decoded and brought to one scale, so that training never waits for an image file.

The store is a Zarr array of uint8 without compression. Its chunks are mapped into memory: what is looked at often stays in the
file cache, and nothing is copied that is not asked for.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch.nn import functional

from slidescreen.atomic import making_folder
from slidescreen.overlap import usable_cores
from slidescreen.records import PATCH_PX, PATCH_UM, RgbImage
from slidescreen.slide import read_image, why_unreadable
from slidescreen.training.classifier.check import require_readable
from slidescreen.training.classifier.images import LabelledImage

CHUNK: Final = 128
MOST_UM: Final = PATCH_UM * math.sqrt(2)
"""Side of the square in which a turned patch always fits: no more is kept of an image."""
KEY: Final = "key.json"


class PackedImages:
    """(N, side, side, 3) uint8, RGB; image i is row i of the list that was packed. Its central `patch_px` are 29 um."""

    def __init__(self, folder: Path) -> None:
        array = zarr.open_array(folder / "images.zarr", mode="r")
        told = json.loads((folder / KEY).read_text(encoding="utf-8"))
        self.folder = folder
        self.shape: tuple[int, int, int, int] = (int(array.shape[0]), int(array.shape[1]), int(array.shape[1]), 3)
        self.patch_px = int(told["patch_px"])
        self.sha256 = str(told["pixels_sha256"])
        self.twin_of: dict[int, int] = {int(twin): first for twin, first in told["twin_of"].items()}
        """Index of an image with the same px as an earlier one -> that one's."""
        self._chunks: list[NDArray[np.uint8]] = [
            np.memmap(folder / "images.zarr" / "c" / str(i) / "0" / "0" / "0", np.uint8, "r", shape=(CHUNK, *self.shape[1:]))
            for i in range(math.ceil(self.shape[0] / CHUNK))
        ]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Size of all images in bytes."""
        return math.prod(self.shape)

    def rows(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Copies of some images, (n, side, side, 3), in the order asked for."""
        out = np.empty((len(indices), *self.shape[1:]), np.uint8)
        for row, index in enumerate(indices):
            out[row] = self._chunks[int(index) // CHUNK][int(index) % CHUNK]
        return out


def pack_images(
    images: Sequence[LabelledImage],
    patch_px: int,
    folder: Path,
    progress: Callable[[int], None] = lambda _done: None,
) -> PackedImages:
    """Pack the images at `patch_px` px for 29 um, or take the store in `folder` when it was packed from the same files.

    Kept is the central square of the largest image, at most 41 um; a smaller image is mirrored out to it. Raises UsageError
    when an image cannot be read, OutputError when the store cannot be written; nothing half packed is left.
    """
    side = packed_side(images, patch_px)
    key = {"patch_px": patch_px, "side": side, "files_sha256": _files_key(images)}
    if (folder / KEY).is_file() and key.items() <= json.loads((folder / KEY).read_text(encoding="utf-8")).items():
        return PackedImages(folder)
    with making_folder(folder, replace=True) as partial:
        digests = _write(images, patch_px, side, partial, progress)
        whole = hashlib.sha256("".join(digests).encode()).hexdigest()
        told = key | {"pixels_sha256": whole, "twin_of": _twins(digests)}
        (partial / KEY).write_text(json.dumps(told), encoding="utf-8")
    return PackedImages(folder)


def packed_side(images: Sequence[LabelledImage], patch_px: int) -> int:
    """Side in px of the packed squares: the largest of a thousand images spread over the list, but 29 to 41 um."""
    largest = max((_extent_um(image) for image in images[:: max(1, len(images) // 1000)]), default=PATCH_UM)
    return math.floor(min(max(largest, PATCH_UM), MOST_UM) * patch_px / PATCH_UM)


def _extent_um(image: LabelledImage) -> float:
    try:
        return float(min(read_image(image.path).shape[:2]) * image.um_per_px)
    except (OSError, ValueError, SyntaxError):
        return 0.0  # named when it is packed


def _files_key(images: Sequence[LabelledImage]) -> str:
    """Changes when an image, its place in the list or its scale does; files are known by size and time of change."""
    digest = hashlib.sha256()
    for image in images:
        state = image.path.stat() if image.path.exists() else None
        told = (image.file, image.um_per_px, state and (state.st_size, state.st_mtime_ns))
        digest.update(repr(told).encode())
    return digest.hexdigest()


def _write(
    images: Sequence[LabelledImage], patch_px: int, side: int, folder: Path, progress: Callable[[int], None]
) -> list[str]:
    """Write the array chunk by chunk; the sha256 of each image's px."""
    array = zarr.create_array(
        folder / "images.zarr",
        shape=(len(images), side, side, 3),
        chunks=(CHUNK, side, side, 3),
        dtype=np.uint8,
        compressors=None,
        filters=None,
        fill_value=None,
    )
    digests: list[str] = []
    for chunk in _chunks(images, patch_px, side):
        array[len(digests) : len(digests) + len(chunk)] = chunk
        digests += [hashlib.sha256(image.tobytes()).hexdigest() for image in chunk]
        progress(len(digests))
    return digests


def _twins(digests: Sequence[str]) -> dict[int, int]:
    first: dict[str, int] = {}
    return {i: first[digest] for i, digest in enumerate(digests) if first.setdefault(digest, i) != i}


def _chunks(images: Sequence[LabelledImage], patch_px: int, side: int) -> Iterator[NDArray[np.uint8]]:
    unreadable: list[tuple[LabelledImage, str]] = []

    def square(image: LabelledImage) -> RgbImage | None:
        try:
            return central_square(read_image(image.path), image.um_per_px, patch_px, side)
        except (OSError, ValueError, SyntaxError) as error:
            unreadable.append((image, why_unreadable(error, image.path)))
            return None

    with ThreadPoolExecutor(usable_cores()) as pool:
        for start in range(0, len(images), CHUNK):
            squares = list(pool.map(square, images[start : start + CHUNK]))
            require_readable(unreadable)
            yield np.stack([s for s in squares if s is not None])


def central_square(image: RgbImage, um_per_px: float, patch_px: int, side: int) -> RgbImage:
    """The middle of an image, (side, side, 3), at `patch_px` px for 29 um; mirrored out where the image is smaller.

    As in screening it is brought to 400 px for 29 um first, and from there to the network's px.
    """
    native = math.ceil(side * PATCH_PX / patch_px)
    factor = um_per_px * PATCH_PX / PATCH_UM
    height, width = image.shape[:2]
    reach = math.ceil(native / factor)
    top, left = max(0, (height - reach) // 2), max(0, (width - reach) // 2)
    part = image[top : top + reach, left : left + reach]
    size = max(1, round(part.shape[1] * factor)), max(1, round(part.shape[0] * factor))
    part = np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC), np.uint8)
    rows, columns = (max(0, native - n) for n in part.shape[:2])
    margins = (rows // 2, rows - rows // 2, columns // 2, columns - columns // 2)
    part = np.asarray(cv2.copyMakeBorder(part, *margins, cv2.BORDER_REFLECT_101), np.uint8)
    y, x = (part.shape[0] - native) // 2, (part.shape[1] - native) // 2
    part = part[y : y + native, x : x + native]
    if patch_px == PATCH_PX:
        return np.ascontiguousarray(part)
    small = functional.interpolate(
        torch.from_numpy(part.copy()).permute(2, 0, 1)[None].float(), (side, side), mode="bilinear", antialias=True
    )
    return np.ascontiguousarray(small[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy())
