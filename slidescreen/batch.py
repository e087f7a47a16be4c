"""Many scans: list them, screen each, let no failure stop the rest."""

from __future__ import annotations

import glob
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from slidescreen.classify import Classifier, classify
from slidescreen.config import Settings
from slidescreen.errors import OpenError, OutputError, SlidescreenError, UsageError
from slidescreen.explain import explain_top
from slidescreen.geometry import Box
from slidescreen.patches import cut_patches, patch_of_image
from slidescreen.pipeline import VERSION, Progress, screen_slide
from slidescreen.records import Cell, Differential, RulerReading, SlideInfo
from slidescreen.report import render
from slidescreen.ruler import measure_scale
from slidescreen.scale import check_scale, resolve_scale, settle_scale
from slidescreen.slide import SCAN_SUFFIXES, Slide, is_remote, location, open_slide, read_image, scans_under
from slidescreen.store import ResultFolder, clean_up, is_current, slide_id

log = logging.getLogger(__name__)

IMAGE_SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"})


@dataclass(frozen=True, slots=True)
class SlideDone:
    """A stored result. `skipped`: it was there already, made of the same scan, model, settings and version."""

    path: Path
    folder: Path
    skipped: bool
    differential: Differential | None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SlideFailure:
    """A scan without a result, and why."""

    path: Path
    error: Exception


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a batch is run. `out`: folder of results. `um_per_px`: the user's scale for every scan, "auto" for that of
    the red cells. `patches`: keep
    `patches.zarr`. `overwrite`: redo results that are current."""

    out: Path
    um_per_px: float | Literal["auto"] | None = None
    patches: bool = True
    overwrite: bool = False


def list_scans(arguments: Sequence[str], out: Path) -> list[Path]:
    """Files, folders (searched through) and globs -> the scans, each once, in the order given.

    Files that do not exist, and folders and globs without scans, stay in the list, to fail by name. Raises UsageError when
    there is nothing else.
    """
    paths: list[Path] = []
    nothing: list[str] = []
    for argument in arguments:
        path = location(argument)
        if is_remote(path):
            paths.append(path)
        elif path.is_dir():
            found = [p for p in scans_under(path) if _outside(p, out)]
            paths += found or [path]
            nothing += [] if found else [f"{path}: no scans in this folder (looked for {', '.join(sorted(SCAN_SUFFIXES))})"]
        elif not path.exists() and glob.has_magic(argument):
            names = glob.glob(argument, recursive=True)  # noqa: PTH207  # pathlib globs from a folder only
            matched = sorted(Path(p) for p in names if Path(p).is_file())
            paths += matched or [path]
            nothing += [] if matched else [f"{argument}: no file matches; check the pattern"]
        else:
            paths.append(path)
    if len(nothing) == len(paths):
        raise UsageError("; ".join(nothing) or "no scans were named")
    once: dict[Path, Path] = {}
    for path in paths:
        once.setdefault(path if is_remote(path) else path.resolve(), path)
    return list(once.values())


def _outside(path: Path, out: Path) -> bool:
    return not path.resolve().is_relative_to(out.resolve())


def require_writable(out: Path) -> None:
    """Make the output folder. Raises UsageError when results cannot be written there."""
    probe = out / ".slidescreen-write-test"
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"{out}: results cannot be written there ({error.strerror}); choose another folder with -o") from error


def identify(
    slide: Slide,
    um_per_px: float | Literal["auto"] | None,
    measure: Callable[[], RulerReading | None] | None = None,
) -> SlideInfo:
    """Scale (not yet checked), fingerprint and id of an open scan. Raises ScaleError or OpenError."""
    scale = settle_scale(
        slide.path, slide.stated_scale, um_per_px, measure or (lambda: measure_scale(slide)), slide.details.other_scales
    )
    try:
        print_ = slide.fingerprint()
    except OSError as error:
        raise OpenError(f"{slide.path}: cannot be read ({error.strerror}); check the disk or the network share") from error
    path = slide.path
    printable = os.fsencode(str(path)).decode("utf-8", "replace")
    return SlideInfo(printable, slide_id(path, print_), slide.vendor, slide.size, scale, print_, slide.reader, slide.icc)


def run_slide(path: Path, classifier: Classifier, settings: Settings, options: RunOptions, progress: Progress) -> SlideDone:
    """Screen one scan and store the result, complete or not at all. Raises SlidescreenError with one clear line."""
    with open_slide(path, settings=settings.reading) as slide:
        ruler = cache(lambda: measure_scale(slide))
        info = identify(slide, options.um_per_px, ruler)
        clean_up(options.out, info.id)
        folder = options.out / info.id
        if not options.overwrite and is_current(
            folder,
            fingerprint=info.fingerprint,
            um_per_px=info.scale.um_per_px,
            sha256=classifier.card.sha256,
            settings=settings.result_settings(),
            version=VERSION,
        ):
            return SlideDone(path, folder, True, None)
        check = check_scale(
            path,
            info.scale,
            ruler(),
            trusted=settings.scale.trust or options.um_per_px is not None,
            estimated=options.um_per_px == "auto",
        )
        with ResultFolder(options.out, info.id) as result_folder:
            result = screen_slide(slide, info, classifier, settings, result_folder.keep_patches, progress, check)
            started = time.perf_counter()
            maps = explain_top(result.cells, result_folder.finish_patches(), classifier, settings.explain)
            result_folder.keep_explanations(maps)
            result = replace(result, timings_s={**result.timings_s, "explain": time.perf_counter() - started})
            result_folder.write(result, partial(render, explanations=maps), patches=options.patches)
            return SlideDone(path, result_folder.commit(), False, result.differential, result.warnings)


def run_batch(
    paths: Iterable[Path],
    classifier: Classifier,
    settings: Settings,
    options: RunOptions,
    progress: Callable[[Path], Progress] = lambda _path: lambda _tiles, _total, _cells: None,
) -> Iterator[SlideDone | SlideFailure]:
    """One outcome per scan. An error of one scan, expected or not, does not stop the others; a full disk does not either."""
    for path in paths:
        try:
            yield run_slide(path, classifier, settings, options, progress(path))
        except SlidescreenError as error:
            yield SlideFailure(path, error)
        except OSError as error:
            failure = OutputError(
                f"{path}: {error.strerror or error} ({error.filename or 'no file named'}); check disk and permissions"
            )
            failure.__cause__ = error
            yield SlideFailure(path, failure)
        except Exception as error:  # an unforeseen defect costs this scan only; -v shows where it came from
            yield SlideFailure(path, error)


@dataclass(frozen=True, slots=True, eq=False)
class ImagePrediction:
    """The class probabilities, (15,) float32 in the model's order, of one image of a cell."""

    path: Path
    probabilities: NDArray[np.float32]


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
            reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).replace(str(path), "it").split())
            yield SlideFailure(path, OpenError(f"{path}: not an image that can be read ({reason}); mend it or leave it out"))
        if len(held) == classifier.batch_size:
            yield from _typed(held, classifier)
            held = []
    if held:
        yield from _typed(held, classifier)


def _typed(held: list[tuple[Path, NDArray[np.uint8]]], classifier: Classifier) -> Iterator[ImagePrediction]:
    rows = classifier.probabilities(np.stack([pixels for _, pixels in held]))
    for (path, _), probabilities in zip(held, rows, strict=True):
        yield ImagePrediction(path, probabilities)


def type_cells_at(path: Path, boxes: Sequence[Box], classifier: Classifier) -> list[str]:
    """The labels of the cells in the middle of given boxes (level-0 px) of a scan."""
    with open_slide(path) as slide:
        scale = resolve_scale(path, slide.stated_scale, None, slide.details.other_scales)
        cells = [Cell(box.centre, box, 0.0) for box in boxes]
        predictions = classify(cut_patches(slide, cells, scale), classifier)
        labels = []
        for prediction in predictions:
            p = prediction.probabilities
            labels.append("" if p is None else classifier.card.classes[int(p.argmax())])
    return labels
