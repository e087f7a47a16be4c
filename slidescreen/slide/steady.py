"""A reader that waits a little for failing storage, and turns colours by the file's ICC profile where that is asked for."""

from __future__ import annotations

import errno
import io
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from slidescreen.geometry import Box, Size
from slidescreen.slide.reader import Details, Reader, StatedScale

WAITS_S: Final = (0.1, 0.5, 2.0)
"""Before the second, third and fourth attempt at a read that failed."""
MAX_IN_A_ROW: Final = 5
"""Reads that failed in spite of waiting; beyond these none waits until one succeeds."""
STORAGE: Final = (
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.ENODEV, errno.ENXIO, errno.ENOTCONN),
    *(errno.ECONNRESET, errno.ECONNABORTED, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
    errno.ENOENT,
)


@dataclass(slots=True)
class Patience:
    """Shared by the handles of one scan. `sleep` waits so many seconds."""

    sleep: Callable[[float], None] = time.sleep
    failed_in_a_row: int = field(default=0, init=False)


def is_storage_error(error: BaseException) -> bool:
    """Whether a failure is the storage's and may pass, rather than damage in the file. OpenSlide tells it in words."""
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in STORAGE
    text = str(error)
    return any(os.strerror(number) in text for number in STORAGE)


class SteadyReader:
    """Wraps the reader that `kind` opens. Pixels that still fail are for `Slide` to count."""

    def __init__(self, kind: Callable[[Path], Reader], path: Path, patience: Patience, *, icc: bool = False) -> None:
        self._kind, self._path, self._patience = kind, path, patience
        self._inner = kind(path)
        self.name = self._inner.name
        self.vendor = self._inner.vendor
        self.sizes: tuple[Size, ...] = self._inner.sizes
        self.stated_scale: StatedScale | None = self._inner.stated_scale
        self.details: Details = self._inner.details
        self.shared = bool(getattr(self._inner, "shared", False))
        self._to_srgb = to_srgb(self.details.icc_profile) if icc and self.details.icc_profile else None

    def block(self, level: int) -> Size:
        return self._inner.block(level)

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        return self._turned(self._patiently(lambda reader: reader.read(level, box)))

    def reductions(self, level: int) -> tuple[int, ...]:
        """Factors by which the inner reader decodes blocks reduced; () where it does not."""
        found: tuple[int, ...] = getattr(self._inner, "reductions", lambda _level: ())(level)
        return found

    def read_reduced(self, level: int, box: Box, factor: int) -> NDArray[np.uint8]:
        """As `read`, of `box` in px of the level divided by `factor`, one of `reductions`."""
        return self._turned(self._patiently(lambda reader: reader.read_reduced(level, box, factor)))

    def close(self) -> None:
        self._inner.close()

    def _turned(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return pixels if self._to_srgb is None else self._to_srgb(pixels)

    def _patiently(self, action: Callable[[Any], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        patience = self._patience
        for wait in (*WAITS_S, None):
            try:
                pixels = action(self._inner)
            except Exception as error:  # each decoder has errors of its own; those of the storage may pass
                if not is_storage_error(error) or wait is None or patience.failed_in_a_row >= MAX_IN_A_ROW:
                    patience.failed_in_a_row += is_storage_error(error)
                    raise
                patience.sleep(wait)
                self._reopen()
            else:
                patience.failed_in_a_row = 0
                return pixels
        raise AssertionError("the last attempt returns or raises")

    def _reopen(self) -> None:
        """OpenSlide's handles stay in an error state after the first failed read. A shared handle is left as it is."""
        if self.shared:
            return
        try:
            fresh = self._kind(self._path)
        except Exception:  # the storage is still away: the old handle tells so at the next attempt
            return
        self._inner.close()
        self._inner = fresh


def to_srgb(profile: bytes) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
    """What turns (h, w, 3 or 4) uint8 colours of a profile into sRGB, by its perceptual intent; alpha stays.

    Raises ValueError for a profile that is damaged or not of RGB.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), "RGB", "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        raise ValueError(f"its ICC profile cannot be applied ({error})") from error

    def turn(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        image = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
        turned = np.asarray(ImageCms.applyTransform(image, transform))
        return turned if pixels.shape[2] == 3 else np.dstack([turned, pixels[..., 3]])

    return turn
