"""Commands that type cells: run, classify, selfcheck."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from slidescreen.cli.app import app
from slidescreen.cli.options import (
    BatchOption,
    DeterministicOption,
    DeviceOption,
    EngineOption,
    IccOption,
    ModelOption,
    ReaderOption,
    TtaOption,
    VerboseOption,
    batch_settings,
    effective_settings,
    open_classifier,
    plausible,
    reading_settings,
    split_engines,
    start_log,
    wanted_scale,
)
from slidescreen.cli.progress import print_failure
from slidescreen.errors import UsageError

if TYPE_CHECKING:
    from slidescreen.batch import SlideFailure

DEFAULT_OUT: Final = "slidescreen-out"


@app.command()
def run(
    scans: Annotated[
        list[str], typer.Argument(metavar="SCAN...", help="Scans: files, folders, globs, CSV files with a row each.")
    ],
    out: Annotated[
        str, typer.Option("-o", "--out", help="Folder (or s3://, gs://) of results, a subfolder per scan.")
    ] = DEFAULT_OUT,
    um_per_px: Annotated[
        str, typer.Option("--um-per-px", help="um per level-0 pixel, wins over what the files state; auto: by red cells.")
    ] = "",
    trust_scale: Annotated[
        bool, typer.Option("--trust-scale", help="Screen at the stated um/px even where the red cells disagree.")
    ] = False,
    model: ModelOption = "",
    device: DeviceOption = "",
    batch_size: BatchOption = 0,
    tta: TtaOption = 0,
    aoi: Annotated[
        str,
        typer.Option("--aoi", help="auto: the monolayer; all: everything scanned; x,y,w,h or FILE.geojson in level-0 px."),
    ] = "",
    settings: Annotated[Path | None, typer.Option("--settings", readable=False, help="TOML file; see README.")] = None,
    reader: ReaderOption = "",
    icc: IccOption = "",
    no_patches: Annotated[bool, typer.Option("--no-patches", help="Do not keep patches.zarr.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan, screen nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Redo scans whose results are current.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again scans that failed by their own fault.")
    ] = False,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Scans side by side; 0 chooses.")] = 0,
    timeout: Annotated[
        float, typer.Option("--timeout-per-slide", min=0, help="Seconds after which a scan fails; 0: never.")
    ] = 0,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            "--engine",
            help="Where: local, or ray for a cluster. With what: auto, torch, openvino, onnxruntime, tensorrt. One of each.",
        ),
    ] = None,
    deterministic: DeterministicOption = False,
    ray_address: Annotated[str, typer.Option("--ray-address", help="auto, HOST:PORT or ray://HOST:10001.")] = "",
    shard: Annotated[str, typer.Option("--shard", help="Screen only part 3 of 16: 3/16.")] = "",
    metrics: Annotated[Path | None, typer.Option("--metrics", help="Prometheus textfile to keep up to date.")] = None,
    verbose: VerboseOption = False,
    json_log: Annotated[bool, typer.Option("--json-log", help="Log as JSON lines on standard error.")] = False,
) -> None:
    """Screen scans: differential, blast and atypical fractions, every cell, and a report for each."""
    start_log(verbose, json_log)
    from slidescreen.batch.events import Job
    from slidescreen.batch.plan import Resume
    from slidescreen.cli.night import Wishes, run_night
    from slidescreen.model import DEFAULT_MODEL, find_model

    place, network = split_engines(engine or [])
    effective = effective_settings(settings, device, batch_size, aoi, trust_scale, tta, network, deterministic)
    effective = batch_settings(effective, workers, timeout)
    effective = dataclasses.replace(effective, reading=reading_settings(effective.reading, reader, icc))
    limit = effective.batch.timeout_per_slide_s or None
    job = Job(out, find_model(model or DEFAULT_MODEL), effective, not no_patches, overwrite, timeout_s=limit)
    wishes = Wishes(scans, wanted_scale(um_per_px), Resume(overwrite, retry_failed), shard, place, ray_address, metrics)
    code = run_night(job, wishes, dry_run=dry_run, verbose=verbose, plain=json_log)
    if code:
        raise typer.Exit(code)


@app.command()
def classify(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE_OR_FOLDER...", help="Images of single cells.")],
    um_per_px: Annotated[float, typer.Option("--um-per-px", help="um per pixel of the images.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="CSV file to write.")] = Path("predictions.csv"),
    model: ModelOption = "",
    device: DeviceOption = "",
    batch_size: BatchOption = 0,
    tta: TtaOption = 0,
    engine: EngineOption = "",
    deterministic: DeterministicOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Type images of single cells (the central 29 um of each) into a CSV file."""
    start_log(verbose, False)
    from slidescreen.batch import SlideFailure, classify_images, list_images
    from slidescreen.differential import judge
    from slidescreen.store import Typed, write_predictions
    from slidescreen.taxonomy import ATYPICAL, BLAST, probability_of

    paths = list_images(images)
    plausible(um_per_px)
    settings = effective_settings(None, device, batch_size, "", tta=tta, engine=engine, deterministic=deterministic)
    classifier = open_classifier(model, settings)
    classes = classifier.card.classes
    failures: list[SlideFailure] = []
    named: Counter[str] = Counter()

    def rows() -> Any:
        for outcome in classify_images(paths, um_per_px, classifier):
            if isinstance(outcome, SlideFailure):
                failures.append(outcome)
                print_failure(outcome, verbose)
                continue
            p = outcome.probabilities
            each = dict(zip(classes, p.tolist(), strict=True))
            blast, atypical = probability_of(BLAST, p, classes), probability_of(ATYPICAL, p, classes)
            status, reason = judge(p, outcome.outlier, outcome.agreement, settings.differential)
            label = classes[int(p.argmax())]
            named[status] += 1
            yield Typed(str(outcome.path), label, each, blast, atypical, status, reason, outcome.outlier, outcome.agreement)

        if not named:
            raise UsageError(f"none of {len(paths)} images could be typed; {out} was not written")

    write_predictions(out, rows())
    others = "".join(f", {named[status]} {status}" for status in ("unsure", "rejected") if named[status])
    typer.echo(f"{named['typed']} of {len(paths)} images typed{others} -> {out}")
    if failures:
        raise typer.Exit(1)


@app.command()
def selfcheck(
    scan: Annotated[Path, typer.Argument(metavar="SCAN", readable=False)],
    um_per_px: Annotated[str, typer.Option("--um-per-px", help="um per level-0 pixel, or auto.")] = "",
    model: ModelOption = "",
    device: DeviceOption = "",
    engine: EngineOption = "",
    verbose: VerboseOption = False,
) -> None:
    """Screen a scan twice, with other tiles and another batch size; exit 1 when the results differ beyond near-ties."""
    start_log(verbose, False)
    from slidescreen.selfcheck import check_scan

    first, second = (effective_settings(None, device, size, "", engine=engine) for size in (16, 5))
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
