"""Is this installation sound? Versions, readers, device, default model."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import openslide

from slidescreen.classify import ClassifySettings, choose_device, load_classifier
from slidescreen.demo import write_pyramid
from slidescreen.detect import DetectSettings
from slidescreen.detector_card import DEFAULT_DETECTOR, load_detector_card
from slidescreen.engines import ENGINES
from slidescreen.engines.choose import choose_engine, require_engine
from slidescreen.engines.settings import EngineName
from slidescreen.errors import UsageError
from slidescreen.geometry import Box
from slidescreen.model import DEFAULT_MODEL, find_model
from slidescreen.records import PATCH_PX
from slidescreen.slide import TIFF_READERS, open_slide
from slidescreen.slide.known_answers import ENCODED, decoder_error

PACKAGES = ("torch", "torchvision", "openslide-python", "wsidicom", "tifffile", "imagecodecs", "zarr", "numpy")


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the examination."""

    name: str
    ok: bool
    detail: str


def examine() -> Iterator[Check]:
    """Run every check; none stops the others."""
    yield Check("slidescreen", True, f"{version('slidescreen')}, Python {platform.python_version()}, {platform.system()}")
    for package in PACKAGES:
        yield _check(package, lambda name=package: version(name))  # type: ignore[misc]
    yield _check("OpenSlide library", lambda: str(openslide.__library_version__))
    for decoder in ENCODED:
        error = decoder_error(decoder)
        yield Check(f"decoder {decoder}", not error, error or "known answer")
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder) / "check.tif"
        image = _gradient()
        yield _check("TIFF writing", lambda: _wrote(scan, image))
        for reader in TIFF_READERS:
            yield _check(f"reader {reader.name}", lambda r=reader: _read(scan, image, r))  # type: ignore[misc]
    yield _check("device", _device)
    for engine in ENGINES[1:]:
        yield Check(f"engine {engine}", True, _engine(engine))
    yield _check("default model", _model)
    yield _check("detector", _detector)


def _check(name: str, action: Callable[[], str]) -> Check:
    try:
        return Check(name, True, action())
    except Exception as error:  # whatever is wrong is what is to be told
        return Check(name, False, f"{type(error).__name__}: {' '.join(str(error).split())}")


def _gradient() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    y, x = np.mgrid[0:768, 0:1024]
    return np.stack([x // 4, y // 3, 255 - x // 4], axis=-1).astype(np.uint8)


def _wrote(path: Path, image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> str:
    write_pyramid(path, image, 0.0725)
    return f"{path.stat().st_size} bytes"


def _read(path: Path, image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], reader: type) -> str:
    with open_slide(path, [reader]) as slide:
        pixels = slide.read_region(Box(100, 100, 512, 512))
    off = float(np.abs(pixels.astype(int) - image[100:612, 100:612]).mean())
    if off > 3:
        raise ValueError(f"pixels differ by {off:.1f} grey levels from those written")
    return f"reads JPEG tiles, mean difference {off:.2f} grey levels"


def _device() -> str:
    import torch

    device = choose_device("auto")
    return f"cuda ({torch.cuda.get_device_name()})" if device == "cuda" else f"cpu ({torch.get_num_threads()} threads)"


def _engine(name: EngineName) -> str:
    """Whether an engine is usable here; one that is not is no fault."""
    device = choose_device("auto")
    try:
        require_engine(name, device)
    except UsageError as error:
        return f"not usable here ({error})"
    return "usable, what auto takes" if name == choose_engine(ClassifySettings(), device) else "usable"


def _detector() -> str:
    from slidescreen.detector_network import load_detector

    folder = find_model(DEFAULT_DETECTOR)
    if load_detector(folder, DetectSettings()).find(np.full((64, 64, 3), 235, np.uint8), 0.3):
        raise ValueError("it finds cells on empty glass")
    return f"{folder.name}, sha256 {load_detector_card(folder).sha256[:12]}..."


def _model() -> str:
    classifier = load_classifier(find_model(DEFAULT_MODEL), ClassifySettings())
    p = classifier.probabilities(np.full((1, PATCH_PX, PATCH_PX, 3), 255, np.uint8))
    if not np.isfinite(p).all() or abs(float(p.sum()) - 1) > 1e-3:
        raise ValueError("probabilities do not sum to 1")
    return f"{classifier.card.name}, sha256 {classifier.card.sha256[:12]}..., runs on {classifier.told}"
