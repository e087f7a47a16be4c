"""`model.prepare` without torch: what engines that do not need torch are given."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, kron, vstack

from slidescreen.model import ModelCard
from slidescreen.records import PATCH_PX


class Preparation:
    """One patch, (400, 400, 3) uint8 RGB -> (1, 3, s, s) float32, contiguous; as `model.prepare` but for the last bit.

    Resized along y, then along x, both with the axis in front; the latter takes the colours apart too, into planes that still
    have to be turned.
    """

    def __init__(self, card: ModelCard) -> None:
        self._px = card.input_px
        along = antialiased(PATCH_PX, card.input_px)
        self._along_y = None if card.input_px == PATCH_PX else along
        self._along_x = csr_array(vstack([kron(along, np.eye(3)[colour]) for colour in range(3)]), dtype=np.float32)
        self._factor = np.array([1 / (255 * s) for s in card.std], np.float32)[:, None, None]
        self._shift = np.array([m / s for m, s in zip(card.mean, card.std, strict=True)], np.float32)[:, None, None]

    def __call__(self, patch: NDArray[np.uint8]) -> NDArray[np.float32]:
        planes = np.empty((1, 3, self._px, self._px), np.float32)
        if self._along_y is None:
            for colour, plane in enumerate(cv2.split(patch)):
                planes[0, colour] = plane
        else:
            rows = self._along_y @ patch.reshape(PATCH_PX, -1).astype(np.float32)
            turned = (self._along_x @ cv2.transpose(rows)).reshape(planes.shape[1:])
            for colour, plane in enumerate(turned):
                cv2.transpose(plane, planes[0, colour])
        planes[0] *= self._factor
        planes[0] -= self._shift
        return planes


def antialiased(size: int, out: int) -> csr_array:
    """(out, size) float32: the weights of linear interpolation between pixel centres, with a triangle as wide as an output px
    where that is the wider (as Pillow and torch do it)."""
    scale = size / out
    reach = max(scale, 1.0)
    centres = (np.arange(out)[:, None] + 0.5) * scale
    weights = np.clip(1 - np.abs((np.arange(size)[None] + 0.5 - centres) / reach), 0, None)
    return csr_array((weights / weights.sum(1, keepdims=True)).astype(np.float32))
