"""One scan, the stages in order. Searching, finding, cutting and typing overlap; what waits between them is bounded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Final, TypeVar

import numpy as np

from slidescreen.classify import Classifier, classify, gather
from slidescreen.config import Settings
from slidescreen.detect import (
    HALO_UM,
    LATTICE_PX,
    Detector,
    DetectSettings,
    FindTally,
    find_cells,
    fit_detector,
    look_at_tiles,
    working_grid,
)
from slidescreen.detector_card import DEFAULT_DETECTOR
from slidescreen.differential import NO_LEUKOCYTE, count_cells, screen_cells
from slidescreen.errors import AuditError, ReadError
from slidescreen.geometry import area_mm2
from slidescreen.model import find_model
from slidescreen.monolayer import Tiling, check_areas, cut_tiles, map_area
from slidescreen.overlap import Ahead, Clock
from slidescreen.patches import cut_patches
from slidescreen.quality import measure_quality
from slidescreen.records import Area, AreaMap, Audit, Differential, Patch, ScaleCheck, ScreenedCell, SlideInfo, SlideResult
from slidescreen.slide import Grid, Slide
from slidescreen.taxonomy import BLAST

VERSION: Final = version("slidescreen")
T = TypeVar("T")
TILES_AHEAD: Final = 1
CELLS_AHEAD: Final = 512
BATCHES_AHEAD: Final = 1
"""One batch is typed, one waits, one is gathered: with 16 patches each 23 MB, on a GPU, with 512, 740 MB."""

MANY_REFUSED: Final = 0.1
"""Share of the cells that the model refuses from which on a reader must know ..."""
LEAST_REFUSED: Final = 10
"""... if there are so many."""
NO_SMEAR: Final = 0.5
"""Share of the bodies found that were refused from which on a scan without measurable red cells is hardly a smear."""

NOT_CHECKED: Final = ScaleCheck("not_measurable")

Progress = Callable[[int, int, int], None]
"""Called with tiles searched, tiles in all, cells done so far."""
Keep = Callable[[Iterable[Patch]], Iterator[Patch]]
"""Passes patches on, storing them."""


def screen_slide(
    slide: Slide,
    info: SlideInfo,
    classifier: Classifier,
    settings: Settings,
    keep: Keep,
    progress: Progress,
    check: ScaleCheck = NOT_CHECKED,
    tiling: Tiling = Tiling(),  # noqa: B008  # frozen
) -> SlideResult:
    """Screen one open scan. `keep` sees every patch, in the order of the result's cells, which do not depend on `tiling`.

    Raises ReadError when more of the scan cannot be decoded than the settings allow.
    """
    clock, stop, started = Clock(), threading.Event(), time.perf_counter()
    area = map_area(slide, info.scale, settings.monolayer)
    grid = working_grid(slide, info.scale)
    detector = choose_detector(slide, grid, area, settings.detect)
    clock.add("area", time.perf_counter() - started)

    tiles = list(cut_tiles(grid, area, HALO_UM, info.scale, side=tiling.side, shift=tiling.shift, lattice=LATTICE_PX))
    tally = FindTally()
    looked = look_at_tiles(slide, grid, tiles, info.scale, detector)
    with ExitStack() as stages:

        def ahead(stage: str, items: Iterable[T], depth: int) -> Ahead[T]:
            return stages.enter_context(closing(Ahead(clock.stage(stage, items), depth, stop)))

        seen = ahead("search", looked, TILES_AHEAD)
        found = find_cells(clock.waiting("find", seen), grid, area, info.scale, settings.detect, tally)
        cells = ahead("find", found, CELLS_AHEAD)
        cut = cut_patches(slide, clock.waiting("cut", cells), info.scale)
        batches = ahead("cut", gather(keep(cut), classifier.batch_size), BATCHES_AHEAD)
        predictions = clock.stage("classify", classify(clock.waiting("classify", batches), classifier))
        screened: list[ScreenedCell] = []
        for cell in screen_cells(predictions, classifier.card.classes, settings.differential):
            screened.append(cell)
            progress(tally.tiles, len(tiles), len(screened))
    areas = _areas(slide, info, area, tally, screened, settings)
    audit = _audit(slide, tally, screened)
    differential = count_cells(screened, settings.differential, classifier.card.thresholds)
    clock.add("total", time.perf_counter() - started)
    return SlideResult(
        slide=info,
        model=classifier.card.info,
        area_mm2=areas,
        cells=tuple(screened),
        differential=differential,
        overview=area.overview,
        settings=settings.result_settings(),
        version=VERSION,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        device=classifier.told,
        timings_s=clock.seconds,
        waiting_s=clock.waits,
        warnings=(
            *_doubts(check, screened),
            *slide.notes,
            *_scale_warnings(slide, info, check),
            *_warnings(areas, screened, differential, classifier.caution),
        ),
        scale_check=check,
        audit=audit,
        quality=measure_quality(area.overview, screened),
    )


def _audit(slide: Slide, tally: FindTally, cells: list[ScreenedCell]) -> Audit:
    """The account of all bodies found. Raises AuditError when it does not close."""
    audit = Audit(tally.bodies, tally.duplicates, tally.outside, len(cells))
    if audit.bodies != audit.duplicates + audit.outside + audit.cells:
        raise AuditError(f"{slide.path}: the cells do not add up ({audit}); please report this")
    return audit


def choose_detector(slide: Slide, grid: Grid, area: AreaMap, settings: DetectSettings) -> Detector:
    """The learned detector, or the colour rules fitted to the scan. Raises ModelError when the weights cannot be used."""
    if settings.method == "stain":
        return fit_detector(slide, grid, area, settings)
    from slidescreen.detector_network import load_detector

    return load_detector(find_model(DEFAULT_DETECTOR), settings)


def _areas(
    slide: Slide, info: SlideInfo, area: AreaMap, tally: FindTally, cells: list[ScreenedCell], settings: Settings
) -> dict[str, float]:
    """The areas, with what the search could not decode moved from screened to unreadable."""
    lost = min(area_mm2(tally.unreadable_px, info.scale.um_per_px), area.area_mm2["screened"])
    areas = dict(area.area_mm2)
    kinds, blocks = np.unique(area.blocks[area.screened_blocks], return_counts=True)
    for kind, count in zip(kinds.tolist(), blocks.tolist(), strict=True):
        part = min(lost * count / blocks.sum(), areas[Area(kind).key])
        for name, sign in (("screened", -1), (Area(kind).key, -1), ("unreadable", 1), ("not_screened", 1)):
            areas[name] += sign * part
    check_areas(areas)
    blind = sum(c.cell.refusal == "unreadable pixels" for c in cells)
    share = max(
        areas["unreadable"] / areas["scanned"] if areas["scanned"] else 0.0,
        blind / len(cells) if len(cells) >= 20 else 0.0,
    )
    if share > settings.monolayer.max_unreadable:
        raise ReadError(
            f"{slide.path}: {100 * share:.0f} % of it cannot be decoded (limit {100 * settings.monolayer.max_unreadable:g} %); "
            "the file is truncated or damaged: copy it again from the scanner"
        )
    return areas


def _doubts(check: ScaleCheck, cells: list[ScreenedCell]) -> Iterator[str]:
    """Whether this is a blood smear at all."""
    refused = sum(c.status == "rejected" for c in cells)
    if check.status == "not_measurable" and len(cells) >= LEAST_REFUSED and refused > NO_SMEAR * len(cells):
        yield (
            f"This may be no blood smear: too few red cells were found to measure, and {refused} of {len(cells)} stained "
            "bodies were refused. Do not read the numbers before you have looked at the scan."
        )


def _scale_warnings(slide: Slide, info: SlideInfo, check: ScaleCheck) -> Iterator[str]:
    """What makes the scale doubtful, in full sentences."""
    um, red = info.scale.um_per_px, check.reading
    if check.status == "estimated":
        yield f"The scale, {um:.3g} um/px, was estimated from red cells; every size and area depends on it."
    elif red is None:
        yield "The scale could not be verified: too few isolated red cells were found to measure."
    elif check.status == "overridden":
        yield (
            f"The scale, {um:.3g} um/px, disagrees with {red.cells} red cells, which say {red.um_per_px:.3g} um/px; "
            "it was kept on request."
        )
    stated = slide.stated_scale
    if stated and info.scale.source == "--um-per-px" and abs(stated.x / um - 1) > 0.05:
        yield f"The scale was given as {um:g} um/px; the file states {stated.x:.4g} um/px ({stated.source})."
    if um > 0.15:
        yield f"At {um:.3g} um/px the scan is coarser than the images the model was trained on (0.07-0.10)."


def _why_nothing(areas: dict[str, float]) -> str:
    """Why no area was screened, by the largest class."""
    kinds = [k for k in Area if areas[k.key] > 0]
    largest = max(kinds, key=lambda k: areas[k.key], default=Area.UNSCANNED)
    if largest == Area.MONOLAYER:
        return "The chosen area holds nothing that was scanned: nothing was screened."
    name = largest.key.replace("_", " ")
    return f"No usable area was found, most of the scan is {name}: nothing was screened (--aoi all screens everything scanned)."


def _warnings(areas: dict[str, float], cells: list[ScreenedCell], d: Differential, precision: str) -> Iterator[str]:
    """What a reader of the numbers must know, in full sentences. `precision`: what is to be said of how it was computed."""
    if precision:
        yield precision
    if not areas["screened"]:
        yield _why_nothing(areas)
    if not d.leukocytes:
        yield "No leukocytes were counted: no percentages of leukocytes are given."
    elif d.leukocytes < 200:
        yield f"Only {d.leukocytes} leukocytes were counted; a manual differential counts 200 or more. The limits are wide."
    labelled = 100 * sum(d.counts[code] for code in BLAST) / d.leukocytes if d.leukocytes else 0.0
    if d.blast.fraction is not None and abs(labelled - 100 * d.blast.fraction) > 5:
        yield (
            f"{labelled:.1f} % of the leukocytes are labelled MYO or MOB, but {100 * d.blast.fraction:.1f} % reach "
            f"P(blast) {d.blast.threshold:g}: many calls are uncertain."
        )
    if areas["unreadable"]:
        yield f"{areas['unreadable']:.3g} mm2 of the scan could not be decoded and was not screened."
    clumps = sum("clump" in c.cell.refusal for c in cells)
    if clumps > 0.02 * max(1, d.leukocytes):
        yield f"{clumps} stained clumps were refused as too large for one cell; they may hold leukocytes that were not counted."
    refused = sum(c.reason == NO_LEUKOCYTE for c in cells)
    if refused > MANY_REFUSED * (d.leukocytes + refused) and refused >= LEAST_REFUSED:
        yield (
            f"{refused} cells were refused because they look like no leukocyte of the 15 classes ({d.leukocytes} leukocytes "
            "were counted): platelets or debris, or a stain or scanner unlike those that the model learned from."
        )
    like_blasts = sum(c.reason != "" and (c.p_blast or 0.0) >= d.blast.threshold for c in cells)
    if like_blasts:
        yield (
            f"Cells that were not counted, refused or unsure, and reach P(blast) {d.blast.threshold:g}: {like_blasts}. "
            "Look at them, they may be blasts."
        )
    if d.smudge_per_100_wbc is not None and d.smudge_per_100_wbc > 10:
        yield f"{d.smudge_per_100_wbc:.0f} smudge cells per 100 leukocytes: broken cells may be blasts and are not counted."
    if d.nrbc_per_100_wbc is not None and d.nrbc_per_100_wbc >= 5:
        yield f"{d.nrbc_per_100_wbc:.0f} erythroblasts per 100 leukocytes: a white cell count of an analyser needs correction."
