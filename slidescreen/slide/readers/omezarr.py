"""OME-Zarr 0.4 and 0.5, by zarr: a folder, a .zarr.zip, or a URL."""

from __future__ import annotations

import errno
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from slidescreen.geometry import Box, Size
from slidescreen.slide.location import is_remote
from slidescreen.slide.reader import (
    MAX_TILE_PX,
    Details,
    StatedScale,
    block_of,
    number,
    require_sizes,
    scale_of,
)

UM_PER_UNIT: Final[Mapping[str, float]] = {
    **{"angstrom": 1e-4, "nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6},
    **{"nm": 1e-3, "um": 1.0, "µm": 1.0, "mm": 1e3},
}
ROOTS: Final = ("zarr.json", ".zgroup", ".zattrs")
ZIPS: Final = (".zip", ".ozx")


def is_zarr(path: Path) -> bool:
    """Whether a folder is the root of a Zarr hierarchy."""
    return any((path / name).is_file() for name in ROOTS)


class OmeZarrReader:
    """zarr: OME-Zarr 0.4 and 0.5. A chunk that is left out, or holds the fill value only, was not scanned."""

    name = "ome-zarr"
    shared = False
    vendor = "ome-zarr"

    def __init__(self, path: Path) -> None:
        self._root = path
        import zarr  # slow to load: only where there is Zarr

        self._store = _open_store(path)
        try:
            group, image = _image(zarr.open_group(self._store, mode="r"))
            axes = [str(a.get("name", "")) if isinstance(a, dict) else str(a) for a in _list(image.get("axes"))]
            self._order = _order(axes)
            datasets = [d for d in _list(image.get("datasets")) if isinstance(d, dict)]
            self._arrays = [_array(group, dataset, self._order) for dataset in datasets]
            if not self._arrays:
                raise ValueError("its multiscales name no arrays")
            y, x = self._order["y"], self._order["x"]
            self.sizes = tuple(Size(a.shape[x], a.shape[y]) for a in self._arrays)
            require_sizes(self.sizes)
            self.stated_scale: StatedScale | None = _scale(image, datasets[0], x, y)
            self.details = Details()
        except BaseException:
            self.close()
            raise

    def block(self, level: int) -> Size:
        chunks = self._arrays[level].chunks
        return block_of(chunks[self._order["x"]], chunks[self._order["y"]], self.sizes[level])

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        array, axes = self._arrays[level], self._order
        index: list[Any] = [0] * array.ndim
        index[axes["y"]], index[axes["x"]], index[axes["c"]] = (
            slice(box.y, box.bottom),
            slice(box.x, box.right),
            slice(0, array.shape[axes["c"]]),
        )
        kept = [axis for axis in range(array.ndim) if axis in (axes["y"], axes["x"], axes["c"])]
        pixels = np.asarray(array[tuple(index)]).transpose([kept.index(axes[name]) for name in "yxc"])
        left_out = self._left_out(array, pixels, box)
        if not left_out.any():
            return pixels
        if not any((self._root / name).is_file() for name in ROOTS) and self._root.suffix not in ZIPS:
            raise OSError(errno.ENOENT, "the folder is no longer there", str(self._root))
        alpha = pixels[..., 3] if pixels.shape[2] == 4 else np.full(pixels.shape[:2], 255, np.uint8)
        return np.dstack([pixels[..., :3], np.where(left_out, 0, alpha).astype(np.uint8)])

    def _left_out(self, array: Any, pixels: NDArray[np.uint8], box: Box) -> NDArray[np.bool_]:
        """(h, w) bool: where a chunk holds nothing but the fill value, as those do that were never written."""
        empty: NDArray[np.bool_] = (pixels == (array.fill_value or 0)).all(2)
        if not empty.any():
            return empty
        height, width = array.chunks[self._order["y"]], array.chunks[self._order["x"]]
        for row in range(box.y // height, (box.bottom - 1) // height + 1):
            for column in range(box.x // width, (box.right - 1) // width + 1):
                part = np.s_[
                    max(0, row * height - box.y) : (row + 1) * height - box.y,
                    max(0, column * width - box.x) : (column + 1) * width - box.x,
                ]
                empty[part] = empty[part].all()
        return empty

    def close(self) -> None:
        self._store.close()


def _open_store(path: Path) -> Any:
    import zarr

    if is_remote(path):
        return zarr.storage.FsspecStore.from_url(str(path), read_only=True)
    if path.is_dir():
        if not is_zarr(path):
            raise ValueError("is no Zarr folder (no zarr.json, .zgroup or .zattrs in it)")
        return zarr.storage.LocalStore(path, read_only=True)
    if path.suffix.lower() not in ZIPS:
        raise ValueError("is neither a Zarr folder nor a .zarr.zip")
    store = zarr.storage.ZipStore(path, mode="r")
    return store


def _is(node: Any, kind: str) -> bool:
    import zarr

    return isinstance(node, getattr(zarr, kind))


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []


def _image(root: Any) -> tuple[Any, Mapping[str, Any]]:
    """The group that holds the image and its multiscales metadata. bioformats2raw puts it into the group "0"."""
    for group in (root, root.get("0") if not _multiscales(root) else None):
        found = _multiscales(group) if _is(group, "Group") else []
        if found and isinstance(found[0], dict):
            return group, found[0]
    raise ValueError("is Zarr, but no OME-Zarr image (no multiscales)")


def _multiscales(group: Any) -> list[Any]:
    attributes = dict(group.attrs)
    ome = attributes.get("ome")
    return _list((ome if isinstance(ome, dict) else attributes).get("multiscales"))


def _order(axes: list[str]) -> dict[str, int]:
    """Axis name -> its number, for y, x and c. Raises ValueError where one is missing."""
    if len(set(axes)) != len(axes) or not {"y", "x", "c"} <= set(axes):
        raise ValueError(f"not an 8-bit RGB image (axes {', '.join(axes) or 'unnamed'})")
    return {name: axes.index(name) for name in "yxc"}


def _array(group: Any, dataset: Mapping[str, Any], order: Mapping[str, int]) -> Any:
    name = str(dataset.get("path", ""))
    if not name or name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise ValueError(f"names an array outside itself ({name!r})")
    array = group[name]
    if not _is(array, "Array") or array.ndim <= max(order.values()):
        raise ValueError(f"{name} is no array of its axes")
    others = [side for axis, side in enumerate(array.shape) if axis not in order.values()]
    if array.dtype != np.uint8 or array.shape[order["c"]] not in (3, 4) or any(side != 1 for side in others):
        raise ValueError(f"not an 8-bit RGB image (array {name}: {array.dtype}, {' x '.join(map(str, array.shape))})")
    piece = array.shards or array.chunks
    if math.prod(piece) > 4 * MAX_TILE_PX:
        raise ValueError(f"array {name} has chunks of {' x '.join(map(str, piece))}, too large to decode")
    return array


def _scale(image: Mapping[str, Any], dataset: Mapping[str, Any], x: int, y: int) -> StatedScale | None:
    axes = _list(image.get("axes"))
    factors = [1.0, 1.0]
    for transforms in (dataset.get("coordinateTransformations"), image.get("coordinateTransformations")):
        for transform in _list(transforms):
            values = _list(transform.get("scale")) if isinstance(transform, dict) else []
            if transform.get("type") == "scale" and len(values) == len(axes):
                for side, axis in enumerate((x, y)):
                    factors[side] *= number(values[axis]) or 0.0
    units = [UM_PER_UNIT.get(str(axes[axis].get("unit", ""))) if isinstance(axes[axis], dict) else None for axis in (x, y)]
    if units[0] is None or units[1] is None:
        return None
    return scale_of(factors[0] * units[0], factors[1] * units[1], "OME-Zarr scale")
