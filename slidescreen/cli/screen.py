"""Commands that type cells: run, classify, selfcheck."""

from __future__ import annotations

import ctypes
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from slidescreen.cli.app import app, log
from slidescreen.cli.options import (
    BatchOption,
    DeviceOption,
    IccOption,
    ModelOption,
    ReaderOption,
    VerboseOption,
    effective_settings,
    open_classifier,
    plausible,
    reading_settings,
    start_log,
    wanted_scale,
)
from slidescreen.cli.progress import Bars, print_done, print_failure

if TYPE_CHECKING:
    from slidescreen.batch import SlideFailure

DEFAULT_OUT: Final = Path("slidescreen-out")
M_ARENA_MAX: Final = -8
"""Of glibc's malloc.h."""


@app.command()
def run(
    scans: Annotated[list[str], typer.Argument(metavar="SCAN...", help="Scans: files, folders or globs.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of results, one subfolder per scan.")] = DEFAULT_OUT,
    um_per_px: Annotated[
        str, typer.Option("--um-per-px", help="um per level-0 pixel, wins over what the files state; auto: by red cells.")
    ] = "",
    trust_scale: Annotated[
        bool, typer.Option("--trust-scale", help="Screen at the stated um/px even where the red cells disagree.")
    ] = False,
    model: ModelOption = "",
    device: DeviceOption = "",
    batch_size: BatchOption = 0,
    aoi: Annotated[
        str,
        typer.Option("--aoi", help="auto: the monolayer; all: everything scanned; x,y,w,h or FILE.geojson in level-0 px."),
    ] = "",
    settings: Annotated[Path | None, typer.Option("--settings", readable=False, help="TOML file; see README.")] = None,
    reader: ReaderOption = "",
    icc: IccOption = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Redo scans whose results are current.")] = False,
    no_patches: Annotated[bool, typer.Option("--no-patches", help="Do not keep patches.zarr.")] = False,
    verbose: VerboseOption = False,
    json_log: Annotated[bool, typer.Option("--json-log", help="Log as JSON lines on standard error.")] = False,
) -> None:
    """Screen scans: differential, blast and atypical fractions, every cell, and a report for each."""
    start_log(verbose, json_log)
    _share_heaps()
    from slidescreen.batch import RunOptions, SlideFailure, list_scans, require_writable, run_batch
    from slidescreen.slide.known_answers import require_decoders

    effective = effective_settings(settings, device, batch_size, aoi, trust_scale)
    effective = dataclasses.replace(effective, reading=reading_settings(effective.reading, reader, icc))
    wanted = wanted_scale(um_per_px)
    paths = list_scans(scans, out)
    require_writable(out)
    require_decoders()
    classifier = open_classifier(model, effective)
    log.info("%d scan(s), model %s, device %s, results in %s", len(paths), classifier.card.name, classifier.device, out)
    options = RunOptions(out, wanted, not no_patches, overwrite)
    failed = done = skipped = 0
    with Bars(json_log) as bars:
        for outcome in run_batch(paths, classifier, effective, options, bars.start):
            bars.finish()
            if isinstance(outcome, SlideFailure):
                failed += 1
                print_failure(outcome, verbose)
            else:
                skipped += outcome.skipped
                done += not outcome.skipped
                print_done(outcome)
    log.info("%d done, %d already current, %d failed", done, skipped, failed)
    if failed:
        raise typer.Exit(1)


@app.command()
def classify(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE_OR_FOLDER...", help="Images of single cells.")],
    um_per_px: Annotated[float, typer.Option("--um-per-px", help="um per pixel of the images.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="CSV file to write.")] = Path("predictions.csv"),
    model: ModelOption = "",
    device: DeviceOption = "",
    batch_size: BatchOption = 0,
    verbose: VerboseOption = False,
) -> None:
    """Type images of single cells (the central 29 um of each) into a CSV file."""
    start_log(verbose, False)
    from slidescreen.batch import SlideFailure, classify_images, list_images
    from slidescreen.store import write_predictions
    from slidescreen.taxonomy import ATYPICAL, BLAST, probability_of

    paths = list_images(images)
    plausible(um_per_px)
    classifier = open_classifier(model, effective_settings(None, device, batch_size, ""))
    classes = classifier.card.classes
    failures: list[SlideFailure] = []

    def rows() -> Any:
        for outcome in classify_images(paths, um_per_px, classifier):
            if isinstance(outcome, SlideFailure):
                failures.append(outcome)
                print_failure(outcome, verbose)
                continue
            p = outcome.probabilities
            named = dict(zip(classes, p.tolist(), strict=True))
            blast, atypical = probability_of(BLAST, p, classes), probability_of(ATYPICAL, p, classes)
            yield str(outcome.path), named, classes[int(p.argmax())], blast, atypical

    number = write_predictions(out, rows())
    typer.echo(f"{number} of {len(paths)} images typed -> {out}")
    if failures:
        raise typer.Exit(1)


@app.command()
def selfcheck(
    scan: Annotated[Path, typer.Argument(metavar="SCAN", readable=False)],
    um_per_px: Annotated[str, typer.Option("--um-per-px", help="um per level-0 pixel, or auto.")] = "",
    model: ModelOption = "",
    device: DeviceOption = "",
    verbose: VerboseOption = False,
) -> None:
    """Screen a scan twice, with other tiles and another batch size; exit 1 when the results differ beyond near-ties."""
    start_log(verbose, False)
    from slidescreen.selfcheck import check_scan

    first, second = (effective_settings(None, device, size, "") for size in (16, 5))
    classifiers = (open_classifier(model, first), open_classifier(model, second))
    found = check_scan(scan, classifiers, first, wanted_scale(um_per_px))
    for difference in found.differences:
        typer.echo(f"{'near-tie: ' if difference.near_tie else ''}{difference.what}")
    ties = sum(d.near_tie for d in found.differences)
    typer.echo(
        f"{scan}: {found.cells} cells, {len(found.differences) - ties} differences, {ties} near-ties, "
        f"largest change of a P(blast) {found.largest_change:.2g}"
    )
    if not found.same:
        raise typer.Exit(1)


def _share_heaps() -> None:
    """Let glibc keep two heaps in place of eight per core: each thread's freed image buffers would otherwise stay in a heap
    of its own. Does nothing where the C library has no mallopt."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 2)
