"""Cells whose values tell which ranges a network in int8 needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from slidescreen.errors import UsageError

PATCHES: Final = "patches.zarr"
LEAST: Final = 100
MOST: Final = 512


def calibration_patches(folder: str) -> NDArray[np.uint8]:
    """(n, 400, 400, 3) uint8: at most 512 patches of a result folder, evenly spread. Raises UsageError for fewer than 100."""
    import zarr

    path = Path(folder) / PATCHES
    if not path.is_dir():
        raise UsageError(f"{folder}: has no {PATCHES} to calibrate with; name a result folder that was made with patches")
    array: Any = zarr.open_array(path, mode="r")
    if array.shape[0] < LEAST:
        raise UsageError(f"{folder}: {array.shape[0]} cells are too few to calibrate with; name a result of {LEAST} or more")
    rows = np.unique(np.linspace(0, array.shape[0] - 1, min(array.shape[0], MOST)).round().astype(int))
    return np.stack([np.asarray(array[row], np.uint8) for row in rows.tolist()])
