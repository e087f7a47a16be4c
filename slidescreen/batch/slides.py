"""Scans: list them, screen each, let no failure stop the rest."""

from __future__ import annotations

import glob
import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Literal

from slidescreen.batch.output import FolderOutput
from slidescreen.classify import Classifier
from slidescreen.config import Settings
from slidescreen.errors import ModelError, OpenError, OutputError, SlidescreenError, UsageError
from slidescreen.explain import explain_top
from slidescreen.overlap import Clock
from slidescreen.pipeline import Progress, screen_slide
from slidescreen.records import Differential, RulerReading, SlideInfo
from slidescreen.report import render
from slidescreen.ruler import measure_scale
from slidescreen.scale import check_scale, settle_scale
from slidescreen.slide import SCAN_SUFFIXES, Slide, is_remote, location, open_slide, scans_under
from slidescreen.slide.fingerprint import slide_id
from slidescreen.store import ResultFolder
from slidescreen.stored import clean_up, is_current, load_explanations, load_patches, load_result

At = Callable[[str], None]
"""Called with the name of each stage as it begins: open, scale, screen, explain, write."""


@dataclass(frozen=True, slots=True)
class SlideDone:
    """A stored result. `skipped`: it was there already, made of the same scan, model, settings and schema. `where`: its URL,
    when it is not in a folder."""

    path: Path
    folder: Path
    skipped: bool
    differential: Differential | None
    warnings: tuple[str, ...] = ()
    timings_s: Mapping[str, float] = field(default_factory=dict)
    where: str = ""


@dataclass(frozen=True, slots=True)
class SlideFailure:
    """A scan without a result, and why: what `failures.csv` says of it. `trace`: the traceback, or what is known of a process
    that died. `transient`: it lies outside the scan (disk, network share), so that the next run tries again by itself."""

    path: Path
    stage: str
    error_class: str
    message: str
    next_step: str
    trace: str = ""
    transient: bool = False

    def __str__(self) -> str:
        return f"{self.message}; {self.next_step}"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a batch is run. `out`: folder of results. `um_per_px`: the user's scale for every scan, "auto" for that of
    the red cells. `patches`: keep
    `patches.zarr`. `overwrite`: redo results that are current."""

    out: Path
    um_per_px: float | Literal["auto"] | None = None
    patches: bool = True
    overwrite: bool = False


def list_scans(arguments: Sequence[str], out: Path | None) -> list[Path]:
    """Files, folders (searched through) and globs -> the scans, each once, in the order given.

    Files that do not exist, and folders and globs without scans, stay in the list, to fail by name. Raises UsageError when
    there is nothing else.
    """
    paths: list[Path] = []
    nothing: list[str] = []
    for argument in arguments:
        if not argument.strip():
            raise UsageError("an empty path was given; name a scan, or . for this folder")
        path = location(argument)
        if is_remote(path):
            paths.append(path)
        elif path.is_dir():
            found = [p for p in scans_under(path) if out is None or not p.resolve().is_relative_to(out.resolve())]
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
    return SlideInfo(
        printable, slide_id(path, print_), slide.vendor, slide.size, scale, print_, slide.reader, um_per_px, slide.icc
    )


def run_slide(
    path: Path,
    classifier: Classifier,
    settings: Settings,
    options: RunOptions,
    progress: Progress,
    at: At = lambda _stage: None,
) -> SlideDone:
    """Screen one scan and store the result in the output folder, which is there, complete or not at all. Raises
    SlidescreenError with one clear line."""
    at("open")
    with open_slide(path, settings=settings.reading) as slide:
        at("scale")
        clock = Clock()
        ruler = cache(lambda: _timed(clock, slide))
        info = identify(slide, options.um_per_px, ruler)
        clean_up(options.out, info.id)
        folder = options.out / info.id
        if not options.overwrite and is_current(
            folder,
            fingerprint=info.fingerprint,
            wanted_scale=options.um_per_px,
            model=classifier.card.identity,
            settings=settings.result_settings(),
        ):
            return SlideDone(path, folder, True, None)
        check = check_scale(
            path,
            info.scale,
            ruler(),
            trusted=settings.scale.trust or options.um_per_px is not None,
            estimated=options.um_per_px == "auto",
        )
        at("screen")
        with ResultFolder(options.out, info.id) as result_folder:
            result = screen_slide(slide, info, classifier, settings, result_folder.keep_patches, progress, check)
            at("explain")
            began = time.perf_counter()
            maps = explain_top(result.cells, result_folder.finish_patches(), classifier, settings.explain)
            result_folder.keep_explanations(maps)
            clock.add("explain", time.perf_counter() - began)
            result = replace(result, timings_s={**result.timings_s, **clock.seconds})
            at("write")
            result_folder.write(result, draw_report, patches=options.patches)
            done = result_folder.commit()
            return SlideDone(path, done, False, result.differential, result.warnings, result.timings_s)


def draw_report(folder: Path) -> str:
    """The page of a stored result. Raises ResultError when it cannot be read back or its pictures of cells were not kept."""
    return render(load_result(folder), load_patches(folder), load_explanations(folder))


def _timed(clock: Clock, slide: Slide) -> RulerReading | None:
    began = time.perf_counter()
    try:
        return measure_scale(slide)
    finally:
        clock.add("ruler", time.perf_counter() - began)


def attempt(
    path: Path,
    classifier: Classifier,
    settings: Settings,
    options: RunOptions,
    progress: Progress,
    at: At = lambda _stage: None,
) -> SlideDone | SlideFailure:
    """`run_slide`, with every error of this scan, expected or not, as its failure."""
    stage = "open"

    def note(begun: str) -> None:
        nonlocal stage
        stage = begun
        at(begun)

    try:
        return run_slide(path, classifier, settings, options, progress, note)
    except Exception as error:  # an unforeseen defect costs this scan only
        return failure(path, error, stage)


def failure(path: Path, error: Exception, stage: str) -> SlideFailure:
    """What is told of an error: by convention its message ends in "; what to do"."""
    trace = "".join(traceback.format_exception(error)).rstrip()
    if isinstance(error, OSError):
        said = f"{path}: {error.strerror or error} ({error.filename or 'no file named'})"
        return SlideFailure(path, stage, type(error).__name__, said, "check disk and permissions", trace, True)
    if not isinstance(error, SlidescreenError):
        said = f"{path}: unforeseen {type(error).__name__} ({' '.join(str(error).split())})"
        return SlideFailure(path, stage, type(error).__name__, said, "report it, with the log of this slide", trace)
    said, _, step = str(error).rpartition("; ")
    said, step = (said, step) if said else (step, "see the log of this slide")
    return SlideFailure(path, stage, type(error).__name__, said, step, trace, isinstance(error, OutputError | ModelError))


def run_batch(
    paths: Iterable[Path],
    classifier: Classifier,
    settings: Settings,
    options: RunOptions,
    progress: Callable[[Path], Progress] = lambda _path: lambda _tiles, _total, _cells: None,
) -> Iterator[SlideDone | SlideFailure]:
    """One outcome per scan, one after the other, in this process. An error of one scan does not stop the others; a full disk
    does not either. `conduct.run_plan` does the same in processes that may die.

    Makes the output folder; raises UsageError where nothing can be written there.
    """
    FolderOutput(str(options.out)).prepare()
    for path in paths:
        yield attempt(path, classifier, settings, options, progress(path))
