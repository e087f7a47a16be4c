"""Commands: parse, call one library function, print, map errors to exit codes.

Exit codes: 0 all done, 1 some scan failed or the run was interrupted (finished scans are saved), 2 wrong use. What is heavy
is imported inside the commands.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from slidescreen.errors import ModelError, SlidescreenError, UsageError

if TYPE_CHECKING:
    from slidescreen.batch import SlideDone, SlideFailure
    from slidescreen.classify import TorchClassifier
    from slidescreen.config import Settings
    from slidescreen.pipeline import Progress

log = logging.getLogger("slidescreen")

app = typer.Typer(
    name="slidescreen",
    help="Screens the leukocytes of scanned blood smears for blasts and atypical cells. Research use; "
    "needs review by a morphologist.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
)

train_app = typer.Typer(help="Train the models that come with slidescreen.", no_args_is_help=True)
app.add_typer(train_app, name="train")

M_ARENA_MAX = -8
"""Of glibc's malloc.h."""
TYPER_INTERRUPTED = 130
"""What typer makes of Ctrl-C."""
DEFAULT_OUT = Path("slidescreen-out")
ModelOption = Annotated[str, typer.Option("--model", help="Name of a model that comes with slidescreen, or a model folder.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
BatchOption = Annotated[int, typer.Option("--batch-size", min=0, help="Cells typed at once; 0 chooses.")]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", help="More log lines; tracebacks of failures.")]


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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Redo scans whose results are current.")] = False,
    no_patches: Annotated[bool, typer.Option("--no-patches", help="Do not keep patches.zarr.")] = False,
    verbose: VerboseOption = False,
    json_log: Annotated[bool, typer.Option("--json-log", help="Log as JSON lines on standard error.")] = False,
) -> None:
    """Screen scans: differential, blast and atypical fractions, every cell, and a report for each."""
    _start_log(verbose, json_log)
    _share_heaps()
    from slidescreen.batch import RunOptions, SlideFailure, list_scans, require_writable, run_batch

    effective = _settings(settings, device, batch_size, aoi, trust_scale)
    wanted = _wanted_scale(um_per_px)
    paths = list_scans(scans, out)
    require_writable(out)
    classifier = _classifier(model, effective)
    log.info("%d scan(s), model %s, device %s, results in %s", len(paths), classifier.card.name, classifier.device, out)
    options = RunOptions(out, wanted, not no_patches, overwrite)
    failed = done = skipped = 0
    with _Bars(json_log) as bars:
        for outcome in run_batch(paths, classifier, effective, options, bars.start):
            bars.finish()
            if isinstance(outcome, SlideFailure):
                failed += 1
                _print_failure(outcome, verbose)
            else:
                skipped += outcome.skipped
                done += not outcome.skipped
                _print_done(outcome)
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
    _start_log(verbose, False)
    from slidescreen.batch import SlideFailure, classify_images, list_images
    from slidescreen.store import write_predictions
    from slidescreen.taxonomy import ATYPICAL, BLAST, probability_of

    paths = list_images(images)
    _plausible(um_per_px)
    classifier = _classifier(model, _settings(None, device, batch_size, ""))
    classes = classifier.card.classes
    failures: list[SlideFailure] = []

    def rows() -> Any:
        for outcome in classify_images(paths, um_per_px, classifier):
            if isinstance(outcome, SlideFailure):
                failures.append(outcome)
                _print_failure(outcome, verbose)
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
def info(
    scan: Annotated[Path, typer.Argument(metavar="SCAN", readable=False)],
    um_per_px: Annotated[float | None, typer.Option("--um-per-px", help="um per level-0 pixel.")] = None,
    verbose: VerboseOption = False,
) -> None:
    """Tell what is read from a scan, by which reader, and where its scale comes from."""
    _start_log(verbose, False)
    from slidescreen.errors import ScaleError
    from slidescreen.scale import resolve_scale
    from slidescreen.slide import open_slide
    from slidescreen.store import slide_id

    with open_slide(scan) as slide:
        try:
            scale = resolve_scale(scan, slide.stated_scale, um_per_px)
            said = f"{scale.um_per_px:.6g} (from {scale.source})"
        except ScaleError as error:
            said = f"unknown: {error}"
        print_ = slide.fingerprint()
        lines = {
            "file": str(scan),
            "id": slide_id(scan, print_),
            "reader": slide.reader,
            "vendor": slide.vendor,
            "size": f"{slide.size.width} x {slide.size.height} px",
            "um/px": said,
            "levels": ", ".join(f"{v.size.width} x {v.size.height} (1:{v.downsample:g})" for v in slide.levels),
            "fingerprint": print_,
        }
    for name, value in lines.items():
        typer.echo(f"{name + ':':13} {value}")


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(metavar="OUT.tif", help="Scan to paint; its truth goes to OUT.json.")],
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    verbose: VerboseOption = False,
) -> None:
    """Paint a synthetic smear with known truth, and tell how many of its cells the default model names right."""
    _start_log(verbose, False)
    from slidescreen.demo import write_demo

    cells = write_demo(out, seed=seed)
    typer.echo(f"{len(cells)} leukocytes painted -> {out}, truth -> {out.with_suffix('.json')}")

    from slidescreen.batch import type_cells_at

    labels = type_cells_at(out, [c.box for c in cells], _classifier("", _settings(None, "", 0, "")))
    right = sum(label == cell.label for label, cell in zip(labels, cells, strict=True))
    typer.echo(f"The default model names {right} of {len(cells)} painted cells as painted (says nothing of real cells).")


@app.command()
def selfcheck(
    scan: Annotated[Path, typer.Argument(metavar="SCAN", readable=False)],
    um_per_px: Annotated[str, typer.Option("--um-per-px", help="um per level-0 pixel, or auto.")] = "",
    model: ModelOption = "",
    device: DeviceOption = "",
    verbose: VerboseOption = False,
) -> None:
    """Screen a scan twice, with other tiles and another batch size; exit 1 when the results differ beyond near-ties."""
    _start_log(verbose, False)
    from slidescreen.selfcheck import check_scan

    first, second = (_settings(None, device, size, "") for size in (16, 5))
    classifiers = (_classifier(model, first), _classifier(model, second))
    found = check_scan(scan, classifiers, first, _wanted_scale(um_per_px))
    for difference in found.differences:
        typer.echo(f"{'near-tie: ' if difference.near_tie else ''}{difference.what}")
    ties = sum(d.near_tie for d in found.differences)
    typer.echo(
        f"{scan}: {found.cells} cells, {len(found.differences) - ties} differences, {ties} near-ties, "
        f"largest change of a P(blast) {found.largest_change:.2g}"
    )
    if not found.same:
        raise typer.Exit(1)


@app.command()
def doctor(verbose: VerboseOption = False) -> None:
    """Check the installation: versions, readers, device, default model."""
    _start_log(verbose, False)
    from slidescreen.doctor import examine

    sound = True
    for check in examine():
        sound = sound and check.ok
        typer.echo(f"{'ok  ' if check.ok else 'FAIL'} {check.name + ':':18} {check.detail}")
    if not sound:
        raise typer.Exit(1)


def _wanted_scale(text: str) -> float | Literal["auto"] | None:
    if text in ("", "auto"):
        return "auto" if text else None
    try:
        return _plausible(float(text))
    except ValueError:
        raise UsageError(f"--um-per-px {text}: must be a number, for instance 0.0725, or auto") from None


def _plausible(um_per_px: float) -> float:
    from slidescreen.scale import MAX_UM_PER_PX, MIN_UM_PER_PX

    if not MIN_UM_PER_PX <= um_per_px <= MAX_UM_PER_PX:
        raise UsageError(f"--um-per-px {um_per_px:g}: must lie in {MIN_UM_PER_PX}-{MAX_UM_PER_PX}")
    return um_per_px


@train_app.command("detector")
def train_detector(
    fields: Annotated[Path, typer.Option("--fields", help="Folder with fields.csv: smear fields with boxes.")],
    masks: Annotated[Path, typer.Option("--masks", help="Folder with masks.csv: cells with expert outlines.")],
    cells: Annotated[Path | None, typer.Option("--cells", help="Folder with cells.csv: images of single cells.")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Model folder to write.")] = Path("models/leukocyte-detector"),
    work: Annotated[Path, typer.Option("--work", help="Folder of checkpoints; the same command goes on from them.")] = Path(
        "build/leukocyte-detector"
    ),
    steps: Annotated[int, typer.Option("--steps", min=1)] = 5000,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    leave_out: Annotated[str, typer.Option("--leave-out", help="A camera whose fields are not learned from.")] = "",
    verbose: VerboseOption = False,
) -> None:
    """Train the leukocyte detector on the CPU; see benchmarks/detection.py for how it is measured."""
    _start_log(verbose, False)
    from slidescreen.training.detector import TrainSettings
    from slidescreen.training.detector_release import train_detector, write_detector

    settings = TrainSettings(steps=steps, seed=seed, left_out=leave_out)
    network, score = train_detector(fields, masks, cells, settings, work)
    write_detector(out, network, score, settings)
    typer.echo(f"Detector after {steps} steps, centre score {score:g} -> {out}")


def _settings(path: Path | None, device: str, batch_size: int, aoi: str, trust_scale: bool = False) -> Settings:
    """Settings of the file, with the options of the command line on top."""
    import dataclasses

    from slidescreen.config import Settings, load_settings
    from slidescreen.monolayer import with_aoi

    base = load_settings(path) if path else Settings()
    changes: dict[str, Any] = {}
    if device:
        changes["device"] = device
    if batch_size:
        changes["batch_size"] = batch_size
    scale = dataclasses.replace(base.scale, trust=trust_scale or base.scale.trust)
    monolayer = with_aoi(base.monolayer, aoi or base.monolayer.aoi)
    return dataclasses.replace(base, scale=scale, monolayer=monolayer, classify=dataclasses.replace(base.classify, **changes))


def _classifier(model: str, settings: Settings) -> TorchClassifier:
    from slidescreen.classify import TorchClassifier
    from slidescreen.model import DEFAULT_MODEL, find_model

    return TorchClassifier(find_model(model or DEFAULT_MODEL), settings.classify)


def _print(line: str) -> None:
    """One line on standard output. When nobody reads it any more the run goes on without."""
    try:
        typer.echo("".join(c if c.isprintable() else " " for c in line))
        sys.stdout.flush()
    except OSError:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # until the process ends


def _print_done(done: SlideDone) -> None:
    report = done.folder / "report.html"
    d = done.differential
    if d is None:
        _print(f"{done.path}: already current -> {report}")
        return

    def said(name: str, fraction: Any) -> str:
        if fraction.fraction is None:
            return f"{name} -"
        low, high = fraction.ci95
        return f"{name} {100 * fraction.fraction:.1f} % ({100 * low:.1f}-{100 * high:.1f})"

    _print(f"{done.path}: {d.leukocytes} leukocytes, {said('blasts', d.blast)}, {said('atypical', d.atypical)} -> {report}")
    for warning in done.warnings:
        log.warning("%s: %s", done.path, warning)


def _print_failure(failure: SlideFailure, verbose: bool) -> None:
    if isinstance(failure.error, SlidescreenError):
        log.error("FAILED %s", failure.error)
    else:
        what = " ".join(str(failure.error).split())
        log.error(
            "FAILED %s: unforeseen %s (%s); run again with -v and report it",
            failure.path,
            type(failure.error).__name__,
            what,
        )
    if verbose:
        log.error("%s", "".join(traceback.format_exception(failure.error)).rstrip(), extra={"lines": True})


class _Bars:
    """One progress bar on a terminal; elsewhere a log line a minute."""

    def __init__(self, plain: bool) -> None:
        self._bar: Any = None
        self._task: Any = None
        if not plain and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = ("{task.description}", BarColumn(), TextColumn("{task.fields[cells]} cells"), TimeElapsedColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)

    def __enter__(self) -> _Bars:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, path: Path) -> Progress:
        log.info("%s: screening", path)
        if self._bar is not None:
            self._task = self._bar.add_task(path.name.replace("[", "\\["), total=None, cells=0)
        told = time.monotonic()

        def report(tiles: int, total: int, cells: int) -> None:
            nonlocal told
            if _stopped.is_set():
                raise KeyboardInterrupt
            if self._bar is not None:
                self._bar.update(self._task, completed=tiles, total=total, cells=cells)
            elif time.monotonic() - told > 60:
                told = time.monotonic()
                log.info("%s: %d of %d tiles searched, %d cells done", path, tiles, total, cells)

        return report

    def finish(self) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None


def _share_heaps() -> None:
    """Let glibc keep two heaps in place of eight per core: each thread's freed image buffers would otherwise stay in a heap
    of its own. Does nothing where the C library has no mallopt."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 2)


def _start_log(verbose: bool, as_json: bool) -> None:
    from slidescreen.logs import start_log

    start_log(verbose=verbose, as_json=as_json)


_stopped = threading.Event()
"""Set by SIGINT and SIGTERM. An exception raised by a signal can be lost where Python ignores errors (in a destructor); the
event is looked at after every cell."""


def _stop(_signal: int, _frame: object) -> NoReturn:
    _stopped.set()
    raise KeyboardInterrupt


def main() -> None:
    """Entry point: run a command and exit with its code."""
    for blow in (signal.SIGINT, signal.SIGTERM):
        signal.signal(blow, _stop)
    try:
        app()
    except (UsageError, ModelError) as error:
        code = _say(error, 2)
    except SlidescreenError as error:
        code = _say(error, 1)
    except OSError as error:
        code = _say(SlidescreenError(f"{error.filename or 'output'}: {error.strerror or error}; check disk and permissions"), 1)
    except (KeyboardInterrupt, SystemExit) as ended:
        if isinstance(ended, SystemExit) and ended.code != TYPER_INTERRUPTED:
            raise
        log.error("interrupted: finished scans are saved, nothing is half written; the same command goes on where it stopped")
        code = 1
    sys.exit(code)


def _say(error: SlidescreenError, code: int) -> int:
    log.error("%s", error)
    log.debug("%s", "".join(traceback.format_exception(error)).rstrip(), extra={"lines": True})
    return code
