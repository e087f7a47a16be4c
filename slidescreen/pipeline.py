"""One scan, the stages in order. Finding, cutting and typing overlap; what waits between them is bounded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Final

from slidescreen.classify import Classifier, classify
from slidescreen.config import Settings
from slidescreen.detect import HALO_UM, LATTICE_PX, Detector, DetectSettings, FindTally, find_cells, fit_detector, working_grid
from slidescreen.detector_model import DEFAULT_DETECTOR
from slidescreen.detector_network import load_detector
from slidescreen.differential import count_cells, screen_cells
from slidescreen.errors import ReadError
from slidescreen.geometry import area_mm2
from slidescreen.model import find_model
from slidescreen.monolayer import cut_tiles, map_area
from slidescreen.overlap import Ahead, Clock
from slidescreen.patches import cut_patches
from slidescreen.records import AreaMap, Differential, Patch, ScreenedCell, SlideInfo, SlideResult
from slidescreen.slide import Grid, Slide

VERSION: Final = version("slidescreen")
CELLS_AHEAD: Final = 512
PATCHES_AHEAD: Final = 64
"""64 patches are 31 MB."""

Progress = Callable[[int, int, int], None]
"""Called with tiles searched, tiles in all, cells done so far."""
Keep = Callable[[Iterable[Patch]], Iterator[Patch]]
"""Passes patches on, storing them."""


def screen_slide(
    slide: Slide, info: SlideInfo, classifier: Classifier, settings: Settings, keep: Keep, progress: Progress
) -> SlideResult:
    """Screen one open scan. `keep` sees every patch, in the order of the result's cells.

    Raises ReadError when more of the scan cannot be decoded than the settings allow.
    """
    clock, stop, started = Clock(), threading.Event(), time.perf_counter()
    area = map_area(slide, info.scale, settings.monolayer)
    grid = working_grid(slide, info.scale)
    detector = choose_detector(slide, grid, area, settings.detect)
    clock.add("area", time.perf_counter() - started)

    tally, total = FindTally(), sum(1 for _ in cut_tiles(grid, area, HALO_UM, info.scale))
    tiles = cut_tiles(grid, area, HALO_UM, info.scale, lattice=LATTICE_PX)
    found = find_cells(slide, grid, tiles, area, info.scale, detector, settings.detect, tally)
    with closing(Ahead(clock.stage("find", found), CELLS_AHEAD, stop)) as cells:
        cut = cut_patches(slide, clock.waiting("cut", cells), info.scale)
        with closing(Ahead(clock.stage("cut", keep(cut)), PATCHES_AHEAD, stop)) as patches:
            predictions = clock.stage("classify", classify(clock.waiting("classify", patches), classifier))
            screened: list[ScreenedCell] = []
            for cell in screen_cells(predictions, classifier.card.classes, settings.differential):
                screened.append(cell)
                progress(tally.tiles, total, len(screened))
    areas = _areas(slide, info, area, tally, screened, settings)
    differential = count_cells(screened, settings.differential)
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
        device=classifier.device,
        timings_s=clock.seconds,
        warnings=tuple(_warnings(slide, info, areas, screened, differential)),
    )


def choose_detector(slide: Slide, grid: Grid, area: AreaMap, settings: DetectSettings) -> Detector:
    """The learned detector, or the colour rules fitted to the scan. Raises ModelError when the weights cannot be used."""
    if settings.method == "stain":
        return fit_detector(slide, grid, area, settings)
    return load_detector(find_model(DEFAULT_DETECTOR), settings)


def _areas(
    slide: Slide, info: SlideInfo, area: AreaMap, tally: FindTally, cells: list[ScreenedCell], settings: Settings
) -> dict[str, float]:
    """The areas, with what the search could not decode moved from screened to unreadable."""
    lost = min(area_mm2(tally.unreadable_px, info.scale.um_per_px), area.area_mm2["screened"])
    areas = dict(area.area_mm2)
    areas["screened"] -= lost
    areas["unreadable"] += lost
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


def _warnings(
    slide: Slide, info: SlideInfo, areas: dict[str, float], cells: list[ScreenedCell], d: Differential
) -> Iterator[str]:
    """What a reader of the numbers must know, in full sentences."""
    if not areas["screened"]:
        yield "No stained area was found: nothing was screened."
    if not d.leukocytes:
        yield "No leukocytes were counted: no percentages of leukocytes are given."
    elif d.leukocytes < 200:
        yield f"Only {d.leukocytes} leukocytes were counted; a manual differential counts 200 or more. The limits are wide."
    stated = slide.stated_scale
    if stated and info.scale.source == "--um-per-px" and abs(stated.x / info.scale.um_per_px - 1) > 0.05:
        yield (
            f"The scale was given as {info.scale.um_per_px:g} um/px; the file states {stated.x:.4g} um/px ({stated.source})."
        )
    if info.scale.um_per_px > 0.15:
        yield f"At {info.scale.um_per_px:.3g} um/px the scan is coarser than the images the model was trained on (0.07-0.10)."
    if areas["unreadable"]:
        yield f"{areas['unreadable']:.3g} mm2 of the scan could not be decoded and was not screened."
    clumps = sum("clump" in c.cell.refusal for c in cells)
    if clumps > 0.02 * max(1, d.leukocytes):
        yield f"{clumps} stained clumps were refused as too large for one cell; they may hold leukocytes that were not counted."
    if d.smudge_per_100_wbc is not None and d.smudge_per_100_wbc > 10:
        yield f"{d.smudge_per_100_wbc:.0f} smudge cells per 100 leukocytes: broken cells may be blasts and are not counted."
    if d.nrbc_per_100_wbc is not None and d.nrbc_per_100_wbc >= 5:
        yield f"{d.nrbc_per_100_wbc:.0f} erythroblasts per 100 leukocytes: a white cell count of an analyser needs correction."
